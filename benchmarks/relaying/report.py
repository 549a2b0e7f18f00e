"""What came out: medians over the rounds, as tables, as bars to reach, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from relaying.measure import Cell, Sample
from relaying.scenarios import FULL_SPEED, LARGE, PACED, SMALL, Scenario
from relaying.targets import DIRECT, EXPRESS, REFERENCE, Target
from rig.report import Bar, median

__all__ = ["LLAMA_CPP", "LLAMA_SWAP", "Summary", "as_json", "bars", "show", "summarise"]

LLAMA_SWAP, LLAMA_CPP = "llama-swap", "llama.cpp"
"""Names of peers that have a bar of their own."""

LEAST_CPU_S = 0.05
"""The kernel counts in hundredths of a second: less than five of them says nothing."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One cell: medians over its rounds. None: not measured, or nothing was answered."""

    scenario: Scenario
    target: str
    rounds: int
    per_s: float | None
    """Requests, or tokens, a second."""
    p50_ms: float | None
    """Of a request."""
    p99_ms: float | None
    first_p50_ms: float | None
    """To the first token, from the moment at which all asked."""
    first_p99_ms: float | None
    gap_p50_ms: float | None
    """From one token to the next, as the client sees them."""
    gap_p99_ms: float | None
    delay_p50_ms: float | None
    """From the engine's writing a token to the client's having it."""
    delay_p99_ms: float | None
    held_p99_ms: float | None
    """The same while all streams were running: without the beginning and the end of all at once."""
    cpu_s: float | None
    """For 1,000 requests, or a million tokens."""
    pss_mib: float | None
    faults: int
    """Over all rounds: refused, broken and unfinished requests, and streams that were not whole."""
    load_busy: float | None
    """How busy the core of the engine and the generator was: near 1, and it is what was measured."""


def summarise(cell: Cell) -> Summary:
    def of(key: str, part: str = "") -> float | None:
        return median(_number(s.result, key, part) for s in cell.samples)

    streams = cell.scenario.what in (FULL_SPEED, PACED)
    return Summary(
        scenario=cell.scenario,
        target=cell.target,
        rounds=len(cell.samples),
        per_s=of("tokens_per_s" if streams else "per_s"),
        p50_ms=of("latency_ms", "p50"),
        p99_ms=of("latency_ms", "p99"),
        first_p50_ms=of("first_token_ms", "p50"),
        first_p99_ms=of("first_token_ms", "p99"),
        gap_p50_ms=of("gap_ms", "p50"),
        gap_p99_ms=of("gap_ms", "p99"),
        delay_p50_ms=of("delay_ms", "p50"),
        delay_p99_ms=of("delay_ms", "p99"),
        held_p99_ms=of("held_delay_ms", "p99"),
        cpu_s=median(_cost(s, streams) for s in cell.samples),
        pss_mib=median(s.pss_mib or None for s in cell.samples),
        faults=sum(_faults(s.result, cell.scenario) for s in cell.samples),
        load_busy=median(s.load_busy for s in cell.samples),
    )


def _number(result: dict[str, Any], key: str, part: str) -> float | None:
    value = result.get(key)
    if part:
        value = (value or {}).get(part)
    return None if value is None else float(value)


def _cost(sample: Sample, streams: bool) -> float | None:
    """CPU seconds for a million tokens, or for a thousand requests."""
    count: int = sample.result["tokens" if streams else "answered_in_all"]
    if sample.cpu_s < LEAST_CPU_S or not count:
        return None
    return sample.cpu_s / count * (1e6 if streams else 1e3)


def _faults(result: dict[str, Any], scenario: Scenario) -> int:
    count: int = result["refused"] + result["broken"]
    if scenario.what == PACED:
        count = result["streams"] - result["whole"]
    return count


def show(console: Console, summaries: Sequence[Summary], targets: Sequence[Target]) -> None:
    """A table for each kind of question."""
    for what in (SMALL, LARGE):
        _table(
            console,
            [s for s in summaries if s.scenario.what == what],
            f"requests, {what}",
            "connections",
            {
                "requests/s": (_get("per_s"), 0),
                "p50 ms": (_get("p50_ms"), 2),
                "p99 ms": (_get("p99_ms"), 2),
                "CPU s/1,000": (_get("cpu_s"), 3),
            },
        )
    _table(
        console,
        [s for s in summaries if s.scenario.what == FULL_SPEED],
        "streams, full speed",
        "streams",
        {"tokens/s": (_get("per_s"), 0), "CPU s/million": (_get("cpu_s"), 1)},
    )
    _table(
        console,
        [s for s in summaries if s.scenario.what == PACED],
        f"streams of {PACED}, all begun at once",
        "streams",
        {
            "first token p50 ms": (_get("first_p50_ms"), 1),
            "p99 ms": (_get("first_p99_ms"), 1),
            "gap p50 ms": (_get("gap_p50_ms"), 1),
            "gap p99 ms": (_get("gap_p99_ms"), 1),
            "under way p99 ms": (_get("delay_p99_ms"), 1),
            "while held": (_get("held_p99_ms"), 1),
            "CPU s/million": (_get("cpu_s"), 1),
        },
    )
    memory = Table("", "most, of all scenarios: MiB (PSS)", title="memory")
    for target in targets:
        if most := max((s.pss_mib or 0.0 for s in summaries if s.target == target.name), default=0.0):
            memory.add_row(target.name, f"{most:.0f}")
    console.print(memory)


def _get(name: str) -> Callable[[Summary], float | None]:
    def get(summary: Summary) -> float | None:
        value: float | None = getattr(summary, name)
        return value

    return get


def _table(
    console: Console,
    summaries: Sequence[Summary],
    title: str,
    count: str,
    columns: dict[str, tuple[Callable[[Summary], float | None], int]],
) -> None:
    if not summaries:
        return
    table = Table(count, "", title=title)
    for name in [*columns, "faults", "load core"]:
        table.add_column(name, justify="right")
    before = 0
    for s in summaries:
        if before and before != s.scenario.connections:
            table.add_section()
        values = [(get(s), digits) for get, digits in columns.values()]
        table.add_row(
            "" if before == s.scenario.connections else f"{s.scenario.connections:,}",
            s.target,
            *("-" if v is None else f"{v:,.{digits}f}" for v, digits in values),
            str(s.faults) if s.faults else "",
            "" if s.load_busy is None else f"{s.load_busy:.0%}",
        )
        before = s.scenario.connections
    console.print(table)


def bars(summaries: Sequence[Summary], mine: str = EXPRESS) -> list[Bar]:
    """What slotd's relay promises, against what came out for the target ``mine``."""
    found = {(s.scenario.what, s.scenario.connections, s.target): s for s in summaries}

    def of(name: str, what: str, count: int, target: str = mine) -> float | None:
        summary = found.get((what, count, target))
        return None if summary is None else _get(name)(summary)

    def times(count: int, other: str) -> float | None:
        return _over(of("per_s", SMALL, count), of("per_s", SMALL, count, other))

    def added(name: str, what: str, count: int, target: str = mine) -> float | None:
        value, alone = of(name, what, count, target), of(name, what, count, DIRECT)
        return None if value is None or alone is None else value - alone

    def first(other: str) -> float | None:
        return _over(of("first_p99_ms", PACED, 500), of("first_p99_ms", PACED, 500, other))

    alone = added("p50_ms", SMALL, 1)
    measured: list[tuple[str, float | None, float, Literal["at least", "at most"], str]] = [
        (f"requests/s over {REFERENCE}, {SMALL}, 16 connections", times(16, REFERENCE), 12, "at least", "x"),
        (f"requests/s over {LLAMA_CPP}, {SMALL}, 8 connections", times(8, LLAMA_CPP), 3, "at least", "x"),
        (f"requests/s over {LLAMA_SWAP}, {SMALL}, 16 connections", times(16, LLAMA_SWAP), 1, "at least", "x"),
        ("added to p50, one connection", alone, 0.25, "at most", "ms"),
        (
            f"the same over what {LLAMA_CPP} adds",
            _over(alone, added("p50_ms", SMALL, 1, LLAMA_CPP)),
            0.5,
            "at most",
            "x",
        ),
        (f"first token p99 over {REFERENCE}, 500 streams", first(REFERENCE), 0.1, "at most", "x"),
        (f"first token p99 over {LLAMA_SWAP}, 500 streams", first(LLAMA_SWAP), 1, "at most", "x"),
        (
            "added under way p99, 1,000 streams held",
            added("held_p99_ms", PACED, 1000),
            20,
            "at most",
            "ms",
        ),
        (
            "added to gap p99, 1,000 streams, begun and ended at once",
            added("gap_p99_ms", PACED, 1000),
            20,
            "at most",
            "ms",
        ),
    ]
    whose = "" if mine == EXPRESS else f"{mine}: "
    return [Bar(whose + what, value, limit, sense, unit) for what, value, limit, sense, unit in measured]


def _over(mine: float | None, other: float | None) -> float | None:
    return mine / other if mine is not None and other else None


def as_json(cells: Sequence[Cell], summaries: Sequence[Summary]) -> dict[str, Any]:
    return {
        "medians": [{**asdict(s), "scenario": s.scenario.name} for s in summaries],
        "samples": [
            {"scenario": c.scenario.name, "target": c.target, "rounds": [asdict(s) for s in c.samples]}
            for c in cells
        ],
    }
