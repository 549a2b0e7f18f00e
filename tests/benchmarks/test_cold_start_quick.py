"""The cold-start benchmark runs, and shows what it is there to show, on a few cells."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cold_start_prefetch.py"
TIMEOUT_S = 1.0


def cell(doc: dict[str, Any], fault: str, requests: int) -> dict[str, Any]:
    (found,) = (c for c in doc["cells"] if (c["remotes"], c["fault"], c["requests"]) == (8, fault, requests))
    assert isinstance(found, dict)
    return found


async def test_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path), "--seed", "1"]
    command += ["--repeats", "3", "--baseline-timeout", str(TIMEOUT_S)]
    with trio.fail_after(90):
        run = partial(trio.run_process, command, capture_stdout=True, capture_stderr=True, check=False)
        done: subprocess.CompletedProcess[bytes] = await run()
    assert done.returncode == 0, done.stderr.decode()

    doc = json.loads((tmp_path / "cold_start_prefetch.json").read_bytes())
    assert doc["baseline"] == {"parallel": 4, "timeout_s": TIMEOUT_S}
    assert (doc["seed"], doc["repeats"], len(doc["cells"])) == (1, 3, 5)
    assert doc["machine"]["cores"] >= 1

    # The table, and the headlines under it.
    shown = done.stdout.decode()
    assert "wait for all" in shown
    assert "lognormal" in shown
    assert "one blackholed remote among eight" in shown

    # The baseline waits for the blackhole; slotd does not, and finds the live remote each time.
    blackhole = cell(doc, "1 blackholed", 1)
    assert blackhole["baseline"]["median_ms"] >= TIMEOUT_S * 1000
    assert blackhole["slotd"]["median_ms"] < TIMEOUT_S * 1000 / 2
    assert blackhole["slotd"]["trials"] == 3
    assert blackhole["slotd"]["missed"] == 0
    assert blackhole["ratio"] > 2
    # A hundred requests: one call per remote, against up to a hundred each.
    crowd = cell(doc, "none", 100)
    assert crowd["slotd"]["most_calls"] == 1
    assert crowd["baseline"]["calls_per_remote"] > 10

    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "cold_start_prefetch.png").read_bytes().startswith(b"\x89PNG")
