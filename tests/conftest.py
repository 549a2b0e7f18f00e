"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from slotd.config import load_config
from slotd.model.store import ModelStore

pytest_plugins = ["process_fixtures"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's file, fetched once into the checkout's cache by slotd's own store."""
    given = os.environ.get("SLOTD_TEST_MODEL")
    if given:
        return Path(given)
    loaded = load_config(ROOT / "config" / "demo.toml", env={})
    ref = loaded.model_ref("smollm2")
    store = ModelStore(ROOT / ".cache" / "models")

    async def fetch() -> Path:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            path = await store.fetch(ref, lambda progress: None)
            nursery.cancel_scope.cancel()
        return path

    return trio.run(fetch)


@pytest.fixture(params=[True, False], ids=["express", "hypercorn"])
def express(request: pytest.FixtureRequest) -> bool:
    """``server.express``: a test that uses this runs over both lanes of the gateway.

    So do those of which a client could notice the lane: framing, errors, streams,
    leaving, stopping. What decides behind the exchange is not tested twice.
    """
    return bool(request.param)


@pytest.fixture
def slotd_server(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """The harness's; with the lane, in tests that run over both."""
    return {"express": request.getfixturevalue("express")} if "express" in request.fixturenames else {}
