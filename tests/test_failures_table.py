"""The table of failures names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_that_it_names_exists() -> None:
    text = (HERE / "failures.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 60
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (HERE / file).is_file()
        or not re.search(rf"^(async )?def {test}\b", (HERE / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing


def test_every_row_says_why() -> None:
    rows = [
        line
        for line in (HERE / "failures.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "went wrong" not in line
    ]
    assert len(rows) >= 58
    for row in rows:
        what, why = row.strip("|").rsplit("|", 1)
        assert what.strip()
        assert len(why.strip()) > 20
