"""A short, seeded run of faults on slotd as a process. The soak in ``benchmarks`` is the long one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from slotd.testing.chaos.plan import BreakSlotd, KillEngine
from slotd.testing.chaos.soak import Settings, plan_of, soak

LIMIT_S = 110
log = logging.getLogger("chaos")


async def test_faults_under_load_break_no_promise(tmp_path: Path) -> None:
    """Shown step by step with ``--log-cli-level=info``."""
    first = 27_000 + os.getpid() % 40 * 50
    settings = Settings(
        seed=19, minutes=0.3, faults=30, clients=10, rest_every=15, base=tmp_path, ports=(first, first + 49)
    )
    assert any(isinstance(step.fault, BreakSlotd) for step in plan_of(settings))
    assert any(isinstance(step.fault, KillEngine) for step in plan_of(settings))
    with trio.fail_after(LIMIT_S):
        result = await soak(settings, log.info)
    assert [v.what for v in result.violations] == []
    assert result.faults.total() >= 20, result.missed
    assert result.outcomes["ok"] > 50
    assert result.outcomes["ok stream"] > 50
    assert result.looks > 20
