"""Every section that there is has its say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from slotd.config import Config, parse_config
from slotd.config.draft import Drafts
from slotd.errors import ConfigInvalid


def read(text: str) -> Config:
    return parse_config(text, "slotd.toml", Path("/"), env={}).config


def test_no_section_is_forgotten() -> None:
    assert set(Config.model_fields) <= {field.name for field in fields(Drafts)}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("server", "port", 1234),
        ("memory", "wait_s", 7.0),
        ("journal", "queue", 3),
        ("omni", "artifacts_mb", 1),
        ("omni", "fetch_urls", True),
    ],
)
def test_what_a_section_says_is_in_force(section: str, key: str, value: object) -> None:
    config = read(f"[{section}]\n{key} = {str(value).lower()}\n")
    assert getattr(getattr(config, section), key) == value


def test_what_the_tool_loops_section_gets_wrong_is_told() -> None:
    with pytest.raises(ConfigInvalid, match=r"omni\.max_round: unknown key") as invalid:
        read("[omni]\nmax_round = 3\nartifacts_mb = 0\n")
    assert "omni.artifacts_mb" in str(invalid.value)
