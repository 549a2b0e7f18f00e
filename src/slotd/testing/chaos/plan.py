"""The faults there are, and plans of them: what is done, to whom, and when. Pure.

A plan is a function of its seed, so a run can be repeated: the same faults in
the same order at the same times. What comes of them depends on the machine's
timing as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

__all__ = [
    "Babble",
    "BreakSlotd",
    "Command",
    "DiskFull",
    "Fault",
    "Freeze",
    "FreezeForGood",
    "HalfClose",
    "Hog",
    "KillEngine",
    "Leave",
    "Misbehave",
    "Reload",
    "Stall",
    "StartFails",
    "StealPort",
    "Step",
    "Stubborn",
    "Target",
    "kind",
    "make_plan",
    "told",
]

Knob: TypeAlias = bool | int | float | str
Phase: TypeAlias = Literal["sent", "loading", "head", "middle", "end"]
Verb: TypeAlias = Literal["load", "unload", "restart", "kill", "swap"]


# --- the engine ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KillEngine:
    """SIGKILL, to the engine's whole process group or to its leader alone."""

    slot: str
    group: bool = True


@dataclass(frozen=True, slots=True)
class Freeze:
    """SIGSTOP, and SIGCONT so many seconds later."""

    slot: str
    for_s: float


@dataclass(frozen=True, slots=True)
class FreezeForGood:
    """SIGSTOP and no more: slotd must find out by itself."""

    slot: str


@dataclass(frozen=True, slots=True)
class Stubborn:
    """The engine ignores SIGTERM from now on, and is then told to restart."""

    slot: str


@dataclass(frozen=True, slots=True)
class StartFails:
    """The engine is killed and its next start fails: an exit code, or minus a signal's number."""

    slot: str
    exit_code: int
    after_s: float
    words: str = ""


@dataclass(frozen=True, slots=True)
class StealPort:
    """The engine is killed; before its successor binds its port, a stranger listens there.

    ``after_s`` is how long the successor takes to bind: short, and it fails to;
    long, and the stranger is found first.
    """

    slot: str
    after_s: float


@dataclass(frozen=True, slots=True)
class Hog:
    """The engine is killed, and its successor takes up more memory than it should."""

    slot: str
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Misbehave:
    """A knob of the running fake engine is turned, and turned back so many seconds later."""

    slot: str
    knob: str
    value: Knob
    for_s: float


# --- operators ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's wish."""

    slot: str
    verb: Verb
    model: str = ""


@dataclass(frozen=True, slots=True)
class Reload:
    """The configuration file is edited and reloaded: rightly, wrongly, or not changed at all."""

    slot: str
    change: Literal["valid", "invalid", "none"]
    by: Literal["signal", "api"]


# --- slotd itself --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiskFull:
    """No file can grow for so many seconds."""

    for_s: float


@dataclass(frozen=True, slots=True)
class BreakSlotd:
    """slotd is killed, or asked to stop, and started again on the same state directory."""

    how: Literal["kill", "stop"]


# --- clients -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leave:
    """A client hangs up at a phase of its request, politely or with a reset."""

    slot: str
    phase: Phase
    stream: bool
    reset: bool


@dataclass(frozen=True, slots=True)
class Stall:
    """A client asks for more than the kernel's buffers hold, and stops reading for so long."""

    slot: str
    for_s: float


@dataclass(frozen=True, slots=True)
class HalfClose:
    """A client shuts down its sending side after its request."""

    slot: str
    stream: bool


@dataclass(frozen=True, slots=True)
class Babble:
    """A client sends what is no request, or only part of one, and leaves some time later."""

    what: Literal["noise", "half_head", "half_body"]
    for_s: float


Fault: TypeAlias = (
    KillEngine
    | Freeze
    | FreezeForGood
    | Stubborn
    | StartFails
    | StealPort
    | Hog
    | Misbehave
    | Command
    | Reload
    | DiskFull
    | BreakSlotd
    | Leave
    | Stall
    | HalfClose
    | Babble
)


def kind(fault: Fault) -> str:
    """The row of a table that it belongs to."""
    match fault:
        case Command(verb=verb):
            return f"command {verb}"
        case Misbehave(knob=knob):
            return f"misbehave {knob}"
        case BreakSlotd(how=how):
            return f"{how} slotd"
        case Reload(change=change):
            return f"reload {change}"
        case Leave(phase=phase):
            return f"leave {phase}"
        case Babble(what=what):
            return f"babble {what}"
        case _:
            return "".join(f" {c.lower()}" if c.isupper() else c for c in type(fault).__name__).strip()


def told(fault: Fault) -> str:
    """One line that says all of it."""
    values = " ".join(f"{f.name}={getattr(fault, f.name)}" for f in fields(fault))
    return f"{type(fault).__name__} {values}"


# --- plans --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A slot that faults may be aimed at. ``fake``: it runs the fake engine and has its knobs.

    ``models`` it can be swapped to.
    """

    slot: str
    fake: bool = True
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A fault of a plan, its number from 1 and its time in seconds from the beginning."""

    number: int
    at_s: float
    fault: Fault


MISBEHAVIOURS: tuple[tuple[str, tuple[Knob, ...]], ...] = (
    ("garbage", ("text", "http", "sse", "empty")),
    ("oversized_response_mb", (1, 4)),
    ("cut_after_tokens", (0, 1, 3)),
    ("close_without_terminator", (True,)),
    ("hang_after_tokens", (0, 1, 3)),
    ("hang_requests", (True,)),
    ("hang_health", (True,)),
    ("slow_health_s", (0.5, 3.0)),
    ("health_status", (500,)),
    ("error_status", (400, 429, 500, 503)),
    ("crash_after_tokens", (0, 1, 4)),
    ("log_flood", (2000,)),
)

EXITS: tuple[tuple[int, str], ...] = (
    (1, ""),
    (3, "error: failed to load model"),
    (127, "error while loading shared libraries: libfake.so.1: cannot open shared object file"),
    (-6, "terminate called after throwing an instance of 'std::bad_alloc'"),
    (-9, ""),
    (-11, ""),
    (0, ""),
)
"""Exit codes (or minus a signal) at a start, and the words that go with them."""

SLOTD_DIES_UNTIL = 0.2
"""slotd itself is broken in this first part of a plan only: the rest shows whether one slotd stays sound."""

Maker: TypeAlias = Callable[[random.Random, Target], Fault]


def make_plan(
    seed: int,
    count: int,
    pace_s: float,
    targets: Sequence[Target],
    *,
    without: frozenset[type[Fault]] = frozenset(),
) -> tuple[Step, ...]:
    """``count`` faults, on average ``pace_s`` seconds apart. ``without`` leaves kinds out."""
    rng = random.Random(seed)
    steps = []
    at = 0.0
    for number in range(1, count + 1):
        at += pace_s * rng.choice((0.2, 0.6, 1.0, 1.4, 1.8))
        target = rng.choice(tuple(targets))
        slotd_may = number <= count * SLOTD_DIES_UNTIL
        weights = {
            make: weight
            for make, (fault, weight, needs_fake) in _MAKERS.items()
            if fault not in without
            and (target.fake or not needs_fake)
            and (fault is not BreakSlotd or slotd_may)
        }
        (make,) = rng.choices(tuple(weights), tuple(weights.values()))
        steps.append(Step(number, round(at, 3), make(rng, target)))
    return tuple(steps)


def _seconds(rng: random.Random, least: float, most: float) -> float:
    return round(rng.uniform(least, most), 2)


def _kill(rng: random.Random, on: Target) -> Fault:
    return KillEngine(on.slot, group=rng.random() < 0.7)


def _freeze(rng: random.Random, on: Target) -> Fault:
    return Freeze(on.slot, _seconds(rng, 0.1, 4.0))


def _freeze_for_good(_rng: random.Random, on: Target) -> Fault:
    return FreezeForGood(on.slot)


def _stubborn(_rng: random.Random, on: Target) -> Fault:
    return Stubborn(on.slot)


def _start_fails(rng: random.Random, on: Target) -> Fault:
    code, words = rng.choice(EXITS)
    return StartFails(on.slot, code, rng.choice((0.0, 0.1, 0.5)), words)


def _steal(rng: random.Random, on: Target) -> Fault:
    return StealPort(on.slot, rng.choice((0.6, 2.5)))


def _hog(rng: random.Random, on: Target) -> Fault:
    return Hog(on.slot, rng.choice((64, 128)))


def _misbehave(rng: random.Random, on: Target) -> Fault:
    knob, values = rng.choice(MISBEHAVIOURS)
    return Misbehave(on.slot, knob, rng.choice(values), _seconds(rng, 0.5, 4.0))


def _command(rng: random.Random, on: Target) -> Fault:
    verbs: list[Verb] = ["load", "unload", "restart", "kill"]
    if on.models and rng.random() < 0.5:
        return Command(on.slot, "swap", rng.choice(on.models))
    return Command(on.slot, rng.choice(verbs))


def _reload(rng: random.Random, on: Target) -> Fault:
    return Reload(on.slot, rng.choice(("valid", "valid", "invalid", "none")), rng.choice(("signal", "api")))


def _disk_full(rng: random.Random, _on: Target) -> Fault:
    return DiskFull(_seconds(rng, 0.5, 4.0))


def _break_slotd(rng: random.Random, _on: Target) -> Fault:
    return BreakSlotd(rng.choice(("kill", "kill", "stop")))


def _leave(rng: random.Random, on: Target) -> Fault:
    phase: Phase = rng.choice(("sent", "loading", "head", "middle", "end"))
    return Leave(on.slot, phase, stream=rng.random() < 0.7, reset=rng.random() < 0.5)


def _stall(rng: random.Random, on: Target) -> Fault:
    return Stall(on.slot, _seconds(rng, 0.5, 6.0))


def _half_close(rng: random.Random, on: Target) -> Fault:
    return HalfClose(on.slot, stream=rng.random() < 0.5)


def _babble(rng: random.Random, _on: Target) -> Fault:
    return Babble(rng.choice(("noise", "half_head", "half_body")), _seconds(rng, 0.1, 3.0))


_MAKERS: Mapping[Maker, tuple[type[Fault], int, bool]] = {
    _kill: (KillEngine, 24, False),
    _freeze: (Freeze, 6, False),
    _freeze_for_good: (FreezeForGood, 5, False),
    _stubborn: (Stubborn, 4, True),
    _start_fails: (StartFails, 7, True),
    _steal: (StealPort, 4, True),
    _hog: (Hog, 2, True),
    _misbehave: (Misbehave, 16, True),
    _command: (Command, 12, False),
    _reload: (Reload, 4, False),
    _disk_full: (DiskFull, 2, False),
    _break_slotd: (BreakSlotd, 6, False),
    _leave: (Leave, 12, False),
    _stall: (Stall, 2, False),
    _half_close: (HalfClose, 2, False),
    _babble: (Babble, 2, False),
}
"""Each kind with its weight, and whether it needs the fake engine."""
