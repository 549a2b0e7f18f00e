"""Timing the policies, side by side, against the same scripts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import trio

from cold_start.matrix import Cell, Plan, plan
from cold_start.policies import Resolve, WaitForAll, slotd_resolver
from cold_start.remotes import WANTED, Remotes
from slotd.dispatch import DispatchLimits, UpstreamEntry
from slotd.dispatch.remote import CatalogFetcher, new_client

__all__ = ["CellRun", "Policy", "Settings", "Trial", "measure"]

Policy: TypeAlias = Literal["slotd", "wait for all"]

HANG_S = 120.0
"""Longest a trial may take beyond the baseline's time-out; past it the benchmark has a fault."""


@dataclass(frozen=True, slots=True)
class Settings:
    """``baseline_budget_s``: once the baseline has spent this in a cell it is not repeated there."""

    seed: int = 0
    repeats: int = 9
    baseline_timeout_s: float = 8.0
    baseline_budget_s: float = 3.0
    limits: DispatchLimits = field(default_factory=DispatchLimits)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one policy. Times in seconds.

    ``times``: of each request, from the moment all of them arrived to its
    answer, be it a route or a miss; ``missed``: those that found nothing.
    ``calls``: requests that each reachable remote got. ``alone_s``: what one
    fetch from the wanted remote took just before, with nothing else going on.
    ``owed_s``: the wait that the rule of declared order allows slotd here.
    """

    times: tuple[float, ...]
    missed: int
    calls: tuple[int, ...]
    alone_s: float
    owed_s: float


@dataclass(slots=True)
class CellRun:
    """A cell under measurement. ``baseline_spent_s``: what its baseline has cost so far."""

    cell: Cell
    trials: dict[Policy, list[Trial]] = field(default_factory=lambda: {"slotd": [], "wait for all": []})
    baseline_spent_s: float = 0.0


async def measure(
    cells: Sequence[Cell], remotes: Remotes, settings: Settings, told: Callable[[int, Cell], None]
) -> list[CellRun]:
    """All cells, once over for each repeat.

    In rounds, so that a spell of other load on the machine falls on a few
    trials of every cell, which their medians bear, and not on all of one.
    ``told`` hears the repeat and the cell before each.
    """
    runs = [CellRun(cell) for cell in cells]
    for repeat in range(settings.repeats):
        for run in runs:
            told(repeat, run.cell)
            await _repeat(run, repeat, remotes, settings)
    return runs


async def _repeat(run: CellRun, repeat: int, remotes: Remotes, settings: Settings) -> None:
    """Both policies against one trial, in turns as to which is first; the baseline only while it may."""
    order: list[Policy] = ["slotd"]
    if repeat == 0 or run.baseline_spent_s < settings.baseline_budget_s:
        order.insert(repeat % 2, "wait for all")
    trial = plan(run.cell, settings.seed, repeat)
    async with new_client() as client:
        fetch = CatalogFetcher(client, {})
        entries = await remotes.script(trial)
        alone_s = await _alone(entries[trial.wanted], fetch)
        for policy in order:
            await remotes.script(trial)  # counts from zero
            started = trio.current_time()
            times, missed = await _run(policy, entries, trial, run.cell.requests, fetch, settings)
            if policy == "wait for all":
                run.baseline_spent_s += trio.current_time() - started
            calls = tuple(await remotes.counts(trial))
            owed = trial.owed_to_order(settings.limits.prefetch_grace_s)
            run.trials[policy].append(Trial(times, missed, calls, alone_s, owed))


async def _alone(wanted: UpstreamEntry, fetch: CatalogFetcher) -> float:
    started = trio.current_time()
    models = await fetch(wanted)
    assert WANTED in models
    return trio.current_time() - started


async def _run(
    policy: Policy,
    entries: Sequence[UpstreamEntry],
    trial: Plan,
    requests: int,
    fetch: CatalogFetcher,
    settings: Settings,
) -> tuple[tuple[float, ...], int]:
    """All requests at once, from cold. Returns their times, and how many found no route."""
    gc.collect()  # what the last run left is not this one's to clear
    wanted = entries[trial.wanted].name
    times: list[float] = []
    missed = 0

    async def request(resolve: Resolve, arrived: float) -> None:
        nonlocal missed
        found = await resolve(WANTED)
        times.append(trio.current_time() - arrived)
        if found is None:
            missed += 1
        elif found != wanted:
            raise AssertionError(f"{policy} chose {found}, which does not list the model")

    with trio.fail_after(settings.baseline_timeout_s + HANG_S):
        async with trio.open_nursery() as services:
            resolve: Resolve
            if policy == "slotd":
                resolve = await slotd_resolver(services, entries, fetch, settings.limits)
            else:
                resolve = WaitForAll(entries, fetch, settings.baseline_timeout_s).resolve
            arrived = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(requests):
                    nursery.start_soon(request, resolve, arrived)
            services.cancel_scope.cancel()
    return tuple(times), missed
