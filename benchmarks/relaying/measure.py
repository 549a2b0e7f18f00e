"""How it is measured: every scenario against every target by turns, round after round."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from relaying.scenarios import Scenario
from relaying.targets import Target
from rig.load_gen import Job
from rig.processes import Cores, core_busy_s, cpu_s, pss_mib

__all__ = ["Cell", "Cells", "Sample", "measure", "warm_up"]

GENERATOR = Path(__file__).parent.parent / "rig/load_gen.py"
PATIENCE_S = 60.0
REST_S, REST_MAX_S, RESTING = 0.1, 5.0, 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the load generator, and what it cost meanwhile."""

    result: dict[str, Any]
    """As the load generator counts."""
    cpu_s: float
    """CPU that the target used, from the first request to the last byte, warm-up included."""
    pss_mib: float
    """Its memory just after."""
    core_busy: float
    """How much of its core was worked on, by whomever: more than its own share is noise."""
    load_busy: float
    """The same of the core of the stub engine and the generator: near 1, and they are what is measured."""


@dataclass(slots=True)
class Cell:
    """One scenario against one target, round after round."""

    scenario: Scenario
    target: str
    samples: list[Sample] = field(default_factory=list)


Cells = dict[tuple[str, str], Cell]
"""By the names of scenario and target, in the order in which they are shown."""


def warm_up(targets: Sequence[Target], cores: Cores) -> None:
    """A few requests to each, so that what is made at the first request is there.

    Raises ``RuntimeError`` for a target that does not answer.
    """
    for target in targets:
        job = Scenario("small JSON", 4, 30.0).job(
            target.host, target.port, target.model, target.key, target.path
        )
        result = _generate(Job(**{**asdict(job), "requests": 40, "warm_s": 0.0}), cores)
        if result["requests"] == 0:
            raise RuntimeError(f"{target.name} does not answer: {result}")


def measure(
    cells: Cells,
    scenarios: Sequence[Scenario],
    targets: Sequence[Target],
    cores: Cores,
    turn: int,
    told: Callable[[str], None],
) -> None:
    """One round; adds a sample to each cell. Blocks until it is done. ``told`` hears what comes next."""
    for scenario in scenarios:
        for target in targets:
            if _fits(scenario, target):
                cells.setdefault((scenario.name, target.name), Cell(scenario, target.name))
        # Another one begins each time, so that nobody always follows the same.
        for i in range(len(targets)):
            target = targets[(i + turn) % len(targets)]
            if _fits(scenario, target):
                told(f"round {turn + 1}: {scenario.name}: {target.name}")
                cells[scenario.name, target.name].samples.append(_sample(scenario, target, cores))


def _fits(scenario: Scenario, target: Target) -> bool:
    return scenario.plain or not target.small_only


def _sample(scenario: Scenario, target: Target, cores: Cores) -> Sample:
    _rest(target)
    job = scenario.job(target.host, target.port, target.model, target.key, target.path)
    began, used = time.monotonic(), cpu_s(target.pids)
    core, load = core_busy_s(cores.measured), core_busy_s(cores.others)
    result = _generate(job, cores)
    took = time.monotonic() - began
    return Sample(
        result,
        round(cpu_s(target.pids) - used, 3),
        round(pss_mib(target.pids), 1),
        round((core_busy_s(cores.measured) - core) / took, 3),
        round((core_busy_s(cores.others) - load) / took, 3),
    )


def _rest(target: Target) -> None:
    """Wait until it has done with what came before: clients that have left, for one."""
    until = time.monotonic() + REST_MAX_S
    used = cpu_s(target.pids)
    while time.monotonic() < until:
        time.sleep(REST_S)
        now = cpu_s(target.pids)
        if now - used <= RESTING * REST_S + 0.005:
            return
        used = now


def _generate(job: Job, cores: Cores) -> dict[str, Any]:
    pin = ["taskset", "-c", str(cores.others)] if cores.others is not None else []
    done = subprocess.run(
        [*pin, sys.executable, str(GENERATOR)],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        timeout=job.seconds + PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
