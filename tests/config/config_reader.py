"""Parsing for the configuration's tests: only the given environment, no file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from slotd.config import LoadedConfig, parse_config
from slotd.errors import ConfigInvalid

NOWHERE = Path("/nowhere")


def parse(text: str, env: Mapping[str, str] | None = None, base_dir: Path = NOWHERE) -> LoadedConfig:
    return parse_config(text, "slotd.toml", base_dir, env={"HOME": "/home/x", **(env or {})})


def problems(text: str, env: Mapping[str, str] | None = None, base_dir: Path = NOWHERE) -> list[str]:
    """The faults of a text, of which there must be some."""
    with pytest.raises(ConfigInvalid) as caught:
        parse(text, env, base_dir)
    return caught.value.problems
