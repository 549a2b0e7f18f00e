"""The slotd that the tests with the real engine share; a pytest plugin that test modules name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_tools import Site, demo_slots, narrow_slot, running, write_config

__all__ = ["site"]


@pytest.fixture(scope="session")
def site(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The demo's slots and a narrow one, with the real engine. Tests leave no request behind."""
    slots = {**demo_slots(), "narrow": narrow_slot()}
    config = write_config(tmp_path_factory.mktemp("site"), slots, {"smollm2": f"file:{demo_model}"})
    with running(config) as slotd:
        yield slotd
