"""What is measured: cells, and the scripts their trials follow. Pure.

A *cell* is one combination of conditions. A *trial* of it fixes everything
chance decides: each remote's delay, which remotes are down, and which one
lists the wanted model. Both policies run against the same trial.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "FAULTS",
    "LATENCIES",
    "SIZES",
    "Cell",
    "Fault",
    "Kind",
    "Latency",
    "Plan",
    "Planned",
    "full",
    "plan",
    "quick",
]

Latency: TypeAlias = Literal["constant", "uniform", "lognormal"]
Fault: TypeAlias = Literal["none", "1 dead", "half dead", "1 blackholed", "half blackholed"]
Kind: TypeAlias = Literal["live", "dead", "blackholed"]

LATENCIES: Mapping[Latency, str] = {
    "constant": "20 ms",
    "uniform": "5 to 50 ms",
    "lognormal": "median 20 ms, sigma 1, at most 1 s",
}
SIZES = (1, 8, 32, 128)
FAULTS: tuple[Fault, ...] = ("none", "1 dead", "half dead", "1 blackholed", "half blackholed")
CROWD = 100


@dataclass(frozen=True, slots=True)
class Cell:
    """``requests``: how many identical ones arrive at the same moment."""

    remotes: int
    latency: Latency
    fault: Fault
    requests: int

    @property
    def blackholed(self) -> bool:
        return self.fault.endswith("blackholed")


@dataclass(frozen=True, slots=True)
class Planned:
    """One remote of a trial. ``delay_s``: from the last byte of its request to its answer, if it is live."""

    kind: Kind
    delay_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One trial: the remotes in declared order; only the one at ``wanted`` lists the model."""

    remotes: tuple[Planned, ...]
    wanted: int

    def owed_to_order(self, grace_s: float) -> float:
        """How long the rule of declared order may hold a hit back, in seconds.

        Remotes declared before the wanted one that are still silent when it
        answers are waited for, ``grace_s`` at most. Reckoned from the script,
        as if all were asked at the same moment.
        """
        hit = self.remotes[self.wanted].delay_s
        return max((_held(r, hit, grace_s) for r in self.remotes[: self.wanted]), default=0.0)


def _held(remote: Planned, hit: float, grace_s: float) -> float:
    match remote.kind:
        case "dead":
            return 0.0  # it is known at once
        case "blackholed":
            return grace_s
        case "live":
            return min(grace_s, max(0.0, remote.delay_s - hit))


WARM_UP = Cell(1, "constant", "none", 1)
"""Run first and not reported: the first request of a process pays for what is loaded late."""


def plan(cell: Cell, seed: int, repeat: int) -> Plan:
    """The trial of this number. Equal arguments give equal trials.

    The wanted model's place is the first, the middle and the last in turn,
    beginning with any of them: a cell that is measured once has no favourite.
    """
    turn = random.Random(f"{seed}/{cell}").randrange(3) + repeat
    rng = random.Random(f"{seed}/{cell}/{repeat}")
    n = cell.remotes
    wanted = (0, n // 2, n - 1)[turn % 3]
    others = [i for i in range(n) if i != wanted]
    down = set(rng.sample(others, _down(cell)))
    kind: Kind = "blackholed" if cell.blackholed else "dead"
    remotes = tuple(Planned(kind if i in down else "live", _delay(cell.latency, rng)) for i in range(n))
    return Plan(remotes, wanted)


def _down(cell: Cell) -> int:
    if cell.fault == "none":
        return 0
    return 1 if cell.fault.startswith("1 ") else cell.remotes // 2


def _delay(latency: Latency, rng: random.Random) -> float:
    match latency:
        case "constant":
            return 0.020
        case "uniform":
            return rng.uniform(0.005, 0.050)
        case "lognormal":
            return min(0.020 * rng.lognormvariate(0.0, 1.0), 1.0)


def full() -> Sequence[Cell]:
    """Uniform latency is crossed with everything; the others with what tells them apart.

    Each cell with a blackholed remote costs the baseline's whole time-out,
    which is what keeps this from being the full product.
    """
    cells = [
        Cell(n, "uniform", fault, requests)
        for requests in (1, CROWD)
        for n in SIZES
        for fault in (FAULTS if n > 1 else FAULTS[:1])
    ]
    others: tuple[Latency, ...] = ("constant", "lognormal")
    few: tuple[Fault, ...] = ("none", "half dead", "1 blackholed")
    cells += [Cell(n, latency, fault, 1) for latency in others for n in (8, 128) for fault in few]
    return cells


def quick() -> Sequence[Cell]:
    """A few cells that touch every part of the benchmark."""
    return (
        Cell(1, "constant", "none", 1),
        Cell(8, "uniform", "none", 1),
        Cell(8, "lognormal", "half dead", 1),
        Cell(8, "constant", "1 blackholed", 1),
        Cell(8, "uniform", "none", CROWD),
    )
