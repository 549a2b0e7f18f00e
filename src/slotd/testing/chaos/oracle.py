"""Keeps account of a run and notes every violation of what slotd promises.

Nothing here acts on slotd; it is told what clients saw and what faults were
done, reads slotd's events, and compares slotd's word with the process table.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slotd.slot.state import LEGAL, UP, SlotState
from slotd.testing.chaos import table
from slotd.testing.chaos.asks import Ask
from slotd.testing.chaos.judge import Answer, Verdict, judge
from slotd.testing.chaos.plan import (
    BreakSlotd,
    Command,
    DiskFull,
    Fault,
    Freeze,
    FreezeForGood,
    Hog,
    KillEngine,
    Leave,
    Misbehave,
    Reload,
    StartFails,
    StealPort,
    Step,
    Stubborn,
    kind,
    told,
)
from slotd.testing.chaos.site import Site

__all__ = ["Expect", "Oracle", "Recovery", "Struck", "Violation"]

SPOILING = frozenset({"garbage", "oversized_response_mb", "error_status"})
"""Knobs with which the engine's own answers are wrong: slotd passes on what an engine says."""

AFTERMATH_S = 1.0
"""What was under way when a fault ended may still show it for so long."""

ON_DISK_S = 2.0
"""What has been so for so long outlives a SIGKILL of slotd."""

BREAKER_S = 60.0
"""So long after a failure a request may have waited in vain for the next try."""

KEPT_IDS = 5000
"""Request ids that are remembered."""

KEPT_DEEDS = 500
"""Faults that are remembered, with when they were."""

STORY = 8
"""So many transitions of a slot are told with a violation."""

STEADY_LOOKS = 4
"""A picture that disagrees with the process table for so many looks in a row is false."""


@dataclass(frozen=True, slots=True)
class Expect:
    """What the oracle insists on, beyond what it always does.

    ``replay``: whoever loses its engine before its first byte is served by the
    next one. ``liveness``: a stopped engine is found out. ``reload``: SIGHUP
    and ``POST /api/config/reload`` work. ``restore``: what was loaded is loaded
    again after slotd died.
    """

    replay: bool = True
    liveness: bool = True
    reload: bool = True
    restore: bool = True


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and the number of the latest fault before it."""

    what: str
    fault: int
    time: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """A slot that lost its engine to a fault while requests were under way, and is up again.

    Seconds. ``seen_s``: from the deed to the slot's word for it. ``up_s``: to
    ready. ``load_s``: how much of that was the engine's load.
    """

    kind: str
    slot: str
    seen_s: float
    up_s: float
    load_s: float

    @property
    def overhead_s(self) -> float:
        """What slotd added to the engine's load."""
        return self.up_s - self.load_s


@dataclass(slots=True)
class Struck:
    """Non-streaming requests whose engine was killed under them, by what came of them.

    ``plain``: nothing else was done to their slot meanwhile, so each is to be
    answered. ``disturbed``: more was (a second kill and a third, a start that
    failed, a command), so a typed error may be right.
    """

    plain: Counter[str] = field(default_factory=Counter)
    disturbed: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Request:
    ask: Ask
    began: float
    struck: int = 0


@dataclass(slots=True)
class _Ended:
    """A finished request that waits for its decision record."""

    request: _Request
    verdict: Verdict
    status: int
    ended: float
    excused: bool


@dataclass(slots=True)
class _Window:
    """A time in which answers of a slot may be spoiled, wall clock."""

    slot: str
    began: float
    ended: float = float("inf")


@dataclass(slots=True)
class _Deed:
    """A fault, while it is carried out; wall clock."""

    fault: Fault
    began: float
    ended: float = float("inf")


@dataclass(slots=True)
class _Blow:
    """A fault that took a slot's engine, until the slot is up again."""

    kind: str
    slot: str
    generation: int
    at: float
    seen: float | None = None


class Oracle:
    """See the module. ``tell`` gets a line for each violation as it is found."""

    def __init__(self, site: Site, expect: Expect, tell: Callable[[str], None]) -> None:
        self._site = site
        self._expect = expect
        self._tell = tell
        self.violations: list[Violation] = []
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.recoveries: list[Recovery] = []
        self.struck = Struck()
        self.latencies: deque[float] = deque(maxlen=200_000)
        self.restarts_s: list[float] = []
        self.swept_s: list[float] = []
        self.events = 0
        self._step: Step | None = None
        self._deeds: dict[int, _Deed] = {}
        self._live: dict[int, _Request] = {}
        self._ids = 0
        self._unrecorded: dict[str, _Ended] = {}
        self._records: dict[str, Mapping[str, Any]] = {}
        self._twice: dict[str, None] = {}
        self._windows: list[_Window] = []
        self._blows: list[_Blow] = []
        self._states: dict[str, SlotState] = {}
        self._up_at: dict[str, float] = {}
        self._loads: dict[tuple[str, int], float] = {}
        self._story: deque[tuple[str, str]] = deque(maxlen=200)
        self._suspects: dict[str, int] = {}

    # --- violations -------------------------------------------------------------------

    def violated(self, what: str) -> None:
        """Note a violation, with the fault that came last."""
        number = self._step.number if self._step else 0
        self.violations.append(Violation(what, number, time.time()))
        self._tell(f"VIOLATION after fault {number}: {what}")

    # --- faults ---------------------------------------------------------------------------

    def begins(self, step: Step) -> None:
        """The fault is being carried out, until :meth:`done` or :meth:`could_not`."""
        self._step = step
        self._deeds[step.number] = _Deed(step.fault, time.time())
        if len(self._deeds) > KEPT_DEEDS:
            self._deeds.pop(next(iter(self._deeds)))

    def done(self, step: Step) -> None:
        """The fault was carried out."""
        self.faults[kind(step.fault)] += 1
        self._over(step)

    def could_not(self, step: Step, why: str) -> None:
        """The fault found nothing to act on."""
        self.missed[kind(step.fault)] += 1
        self._tell(f"    missed: {told(step.fault)}: {why}")
        self._over(step)

    def _over(self, step: Step) -> None:
        if step.number in self._deeds:
            self._deeds[step.number].ended = time.time()

    def _disturbed(self, slot: str, began: float, ended: float, code: str) -> list[Fault]:
        """What was done to the slot in that time, by other hands than clients'."""
        # The pauses of the crash-loop breaker outlast what they are for.
        before_s = BREAKER_S if code == "slot.queue_timeout" else AFTERMATH_S
        return [
            deed.fault
            for deed in self._deeds.values()
            if deed.began <= ended and deed.ended + before_s >= began and _disturbs(deed.fault, slot)
        ]

    def spoil(self, fault: Misbehave) -> Callable[[], None]:
        """Answers of the slot may be wrong until the function returned is called."""
        if fault.knob not in SPOILING:
            return lambda: None
        window = _Window(fault.slot, time.time())
        self._windows.append(window)

        def over() -> None:
            window.ended = time.time() + AFTERMATH_S

        return over

    def strikes(self, fault: Fault, slot: str, generation: int) -> None:
        """The slot's engine is about to be killed (or frozen for good). Call it just before."""
        under_way = [r for r in self._live.values() if r.ask.slot == slot and not r.ask.wrong]
        for request in under_way:
            if not request.ask.stream:
                request.struck += 1
        if under_way:
            self._blows.append(_Blow(kind(fault), slot, generation, time.time()))

    # --- requests ---------------------------------------------------------------------------

    def asked(self, ask: Ask) -> int:
        """A client sends a request and will stay for its answer. Returns the key for :meth:`answered`."""
        self._ids += 1
        self._live[self._ids] = _Request(ask, time.time())
        return self._ids

    def left(self, key: int) -> None:
        """The client has left after all."""
        self._live.pop(key)
        self.outcomes["client left"] += 1

    def hung(self, key: int) -> None:
        """The request was not answered within any limit."""
        request = self._live.pop(key)
        self.outcomes["hung"] += 1
        self.violated(f"hung for {time.time() - request.began:.0f} s: {request.ask}")

    def answered(self, key: int, answer: Answer) -> None:
        """What came of a request."""
        request = self._live.pop(key)
        now = time.time()
        verdict = judge(request.ask, answer)
        outage = self._outage(request.began, now)
        if answer.status is None or not answer.ended:
            verdict = self._broken(request, verdict, outage)
        spoiled = self._spoiled(request.ask.slot, request.began, now)
        if verdict.flaw and spoiled:
            verdict = Verdict("passed on (engine misbehaves)")
        if verdict.flaw:
            self.violated(f"{verdict.flaw}; {request.ask}; status {answer.status}, request {answer.id}")
        self.outcomes[verdict.outcome] += 1
        self.latencies.append(now - request.began)
        if request.struck:
            self._struck(request, verdict)
        if answer.id is not None and answer.status is not None:
            excused = spoiled or outage is not None
            ended = _Ended(request, verdict, answer.status, now, excused)
            if (record := self._records.pop(answer.id, None)) is not None:
                self._agree(answer.id, ended, record)
            elif answer.id in self._unrecorded:
                self.violated(f"two answers have the request id {answer.id}")
            else:
                self._unrecorded[answer.id] = ended

    def _struck(self, request: _Request, verdict: Verdict) -> None:
        """A request whose engine was killed is answered all the same, unless more was done to it."""
        ask = request.ask
        faults = self._disturbed(ask.slot, request.began, time.time(), verdict.code)
        kills = [fault for fault in faults if isinstance(fault, KillEngine)]
        age_s = time.time() - request.began
        # It waits for another engine no longer than for the first one.
        late = age_s > self._site.limits.queue_s
        spent = len(kills) > self._site.limits.max_replays
        # Not refused for a back-off unless it came after the kill; its record is held against that.
        newcomer = verdict.code == "slot.crash_looping"
        if len(kills) < len(faults) or spent or late or newcomer or not ask.wait:
            self.struck.disturbed[verdict.outcome] += 1
            return
        self.struck.plain[verdict.outcome] += 1
        if self._expect.replay and not verdict.ok:
            self.violated(
                f"its engine was killed, and after {age_s:.1f} s it was answered {verdict.outcome}: {ask}; "
                f"{self.story(ask.slot)}"
            )

    def _broken(self, request: _Request, verdict: Verdict, outage: str | None) -> Verdict:
        """No head, or no proper end: that is right only if slotd itself went away."""
        if outage == "kill":
            return Verdict("slotd was killed")
        if outage == "stop" and verdict.outcome == "no answer":
            return Verdict("slotd was stopping")
        if verdict.outcome == "cut" and request.struck and not request.ask.stream:
            # Half a document cannot be mended.
            return Verdict("cut (engine killed)")
        return verdict

    def _outage(self, began: float, ended: float) -> str | None:
        """How slotd went away during that time, if it did: the hardest way, if more than once."""
        ways = {
            outage.how
            for outage in self._site.outages
            if outage.began <= ended and outage.ended >= began - AFTERMATH_S
        }
        return min(ways, default=None)  # "kill" comes before "stop"

    def _spoiled(self, slot: str, began: float, ended: float) -> bool:
        return any(w.slot == slot and w.began <= ended and w.ended >= began for w in self._windows)

    @property
    def live(self) -> int:
        """Requests whose clients wait now."""
        return len(self._live)

    # --- decision records --------------------------------------------------------------------

    def _recorded(self, id: str, record: Mapping[str, Any]) -> None:
        if id in self._twice:
            self.violated(f"request {id} has two decision records")
            return
        self._twice[id] = None
        if len(self._twice) > KEPT_IDS:
            self._twice.pop(next(iter(self._twice)))
        ended = self._unrecorded.pop(id, None)
        if ended is not None:
            self._agree(id, ended, record)
        else:
            self._records[id] = record
            if len(self._records) > KEPT_IDS:  # of clients that left, and of those of faults
                self._records.pop(next(iter(self._records)))

    def _agree(self, id: str, ended: _Ended, record: Mapping[str, Any]) -> None:
        """The record tells what the client saw."""
        verdict = ended.verdict
        if record["status"] != ended.status:
            self.violated(f"request {id}: the client saw {ended.status}, the record says {record['status']}")
        if verdict.code and record["error"] != verdict.code:
            self.violated(f"request {id}: the client saw {verdict.code}, the record says {record['error']}")
        if verdict.ok and record["outcome"] != "ok":
            self.violated(f"request {id}: answered in full, the record says {record['outcome']}")
        if verdict.code == "slot.crash_looping" and record["replays"]:
            self.violated(f"request {id} had lost its engine, and was refused for a back-off")
        if (
            self._expect.replay
            and not ended.excused
            and verdict.outcome == "502 slot.engine_lost"
            and (verdict.details or {}).get("reason") in ("exited", "hung")
            and record["replays"] < self._site.limits.max_replays
            and record["total_s"] < self._site.limits.queue_s
        ):
            self.violated(
                f"request {id} lost its engine before its first byte and was not replayed "
                f"(replays {record['replays']}, after {record['total_s']:.1f} s): {ended.request.ask} "
                f"{dict(verdict.details or {})}; {self.story(ended.request.ask.slot)}"
            )

    def check_records(self) -> None:
        """Call when all has been quiet for a while: every answer must have its record by now."""
        for id, ended in self._unrecorded.items():
            if not ended.excused:
                self.violated(f"request {id} ended {time.time() - ended.ended:.1f} s ago and has no record")
        self._unrecorded.clear()
        self._records.clear()

    # --- events ---------------------------------------------------------------------------------

    def slotd_started(self) -> None:
        """A new slotd: its slots begin offline, its numbers at 1."""
        self._states = dict.fromkeys(self._site.slots, SlotState.OFFLINE)
        self._up_at.clear()
        self._loads.clear()
        self._blows.clear()
        self._suspects.clear()
        self._unrecorded.clear()
        self._records.clear()

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """An event of slotd's, in order."""
        self.events += 1
        match name:
            case "gap":
                self.violated(f"slotd dropped {data['missed']} events for a reader that keeps up")
            case "slot.transition":
                self._transition(data)
            case "slot.loaded":
                self._up_at[data["slot"]] = data["time"]
                self._loads[data["slot"], data["generation"]] = data["load_s"]
                self._recovered(data["slot"], data["generation"], data["time"])
            case "slot.stopped" if data["survivors"]:
                self.violated(f"slot {data['slot']}: processes that would not die: {data['survivors']}")
            case "actor.crashed":
                self.violated(f"an actor crashed: {dict(data)}")
            case "request.finished":
                self._recorded(data["id"], data)
            case _:
                pass

    def _transition(self, data: Mapping[str, Any]) -> None:
        slot, before, after = data["slot"], SlotState(data["from"]), SlotState(data["to"])
        known = self._states.get(slot)
        if known is not None and before is not known:
            self.violated(f"slot {slot}: {before} -> {after}, but it was {known}")
        if after not in LEGAL[before]:
            self.violated(f"slot {slot}: {before} -> {after} is no edge of the table ({data['why']})")
        self._states[slot] = after
        if after not in UP:
            self._up_at.pop(slot, None)
        at = f"generation {data['generation']}, {data['time']:.2f}"
        self._story.append((slot, f"{before} to {after} ({data['why']}, {at})"))
        if after in (SlotState.ERROR, SlotState.UNLOADING):
            for blow in self._blows:
                if blow.slot == slot and blow.seen is None and data["generation"] == blow.generation:
                    blow.seen = data["time"]

    def _recovered(self, slot: str, generation: int, at: float) -> None:
        for blow in [b for b in self._blows if b.slot == slot and b.generation < generation]:
            self._blows.remove(blow)
            load_s = self._loads[slot, generation]
            if blow.seen is not None and generation == blow.generation + 1:
                self.recoveries.append(Recovery(blow.kind, slot, blow.seen - blow.at, at - blow.at, load_s))

    def story(self, slot: str) -> str:
        """The slot's latest transitions, for whoever looks into a violation."""
        steps = [step for name, step in self._story if name == slot]
        return f"at {time.time():.2f}, slot {slot}: " + ", ".join(steps[-STORY:])

    def to_be_restored(self) -> set[str]:
        """The slots that are up and have been for long enough that it must be on disk.

        None, if the disk has been full until a moment ago.
        """
        since = time.time() - ON_DISK_S
        if any(isinstance(d.fault, DiskFull) and d.ended >= since for d in self._deeds.values()):
            return set()
        return {slot for slot, at in self._up_at.items() if at <= since}

    # --- truth --------------------------------------------------------------------------------------

    def look(self, views: list[dict[str, Any]]) -> None:
        """Compare what slotd shows of its slots with the process table, right after it was shown.

        One disagreement is nothing: things change between the two looks. One
        that stays is a false state.
        """
        marked = table.look(self._site.mark)
        found: set[str] = set()
        known: set[int] = set()
        for view in views:
            found.update(f"{view['name']} generation {view['generation']} {s}" for s in _false(view, marked))
            if view["pid"] is not None:
                known.add(view["pid"])
        runs = {m.run for m in marked.values() if m.pgrp in known}
        for m in marked.values():
            if m.slot and m.pgrp not in known and m.ppid not in known:
                found.add(
                    f"engine process {m.pid} of slot {m.slot} (start {m.start[-12:]}) belongs to no slot"
                )
            if m.slot and runs and m.run not in runs:
                found.add(f"engine process {m.pid} of slot {m.slot} is left of an earlier slotd")
        self._suspects = {s: self._suspects.get(s, 0) + 1 for s in found}
        for suspect, looks in self._suspects.items():
            if looks == STEADY_LOOKS:
                self.violated(f"false state: {suspect}, {looks} looks in a row")

    def slotd_wrote(self, lines: list[str]) -> None:
        """What a slotd has written to its console."""
        for number, line in enumerate(lines):
            if "Traceback" in line or "met a bug" in line or "actor crashed" in line:
                shown = "".join(lines[max(0, number - 2) : number + 25])
                self.violated(f"slotd's log shows a bug:\n{shown}")
                return


def _disturbs(fault: Fault, slot: str) -> bool:
    """Whether the slot may fail to answer because of it."""
    match fault:
        case BreakSlotd():
            return True
        case Leave(on, phase):
            return on == slot and phase == "loading"  # which it brings about by an unload
        case (
            KillEngine(on)
            | Freeze(on)
            | FreezeForGood(on)
            | Stubborn(on)
            | StartFails(on)
            | StealPort(on)
            | Hog(on)
            | Misbehave(on)
            | Command(on)
            | Reload(on)
        ):
            return on == slot
        case _:
            return False


def _false(view: Mapping[str, Any], marked: Mapping[int, table.Marked]) -> list[str]:
    """What is not true of a slot, as it shows itself."""
    state, pid = SlotState(view["state"]), view["pid"]
    found = []
    if state in (SlotState.READY, SlotState.SERVING, SlotState.IDLE):
        port = int(view["address"].rpartition(":")[2]) if view["address"] else 0
        if pid is None or pid not in marked:
            found.append(f"is {state} without a living process (pid {pid})")
        elif not table.listens(port, pid, marked):
            found.append(f"is {state}, but its process {pid} does not listen on {port}")
        if not view["models"]:
            found.append(f"is {state} without a model")
    elif pid is None:
        left = [m.pid for m in marked.values() if m.slot == view["name"]]
        if left and state is not SlotState.STARTING:
            found.append(f"is {state} without a process, but {left} live")
    if (state is SlotState.SERVING) != (view["leases"] > 0):
        found.append(f"is {state} with {view['leases']} leases")
    if view["leases"] > view["max_parallel"]:
        found.append(f"has {view['leases']} leases, at most {view['max_parallel']}")
    starts = {m.start for m in marked.values() if m.slot == view["name"]}
    if len(starts) > 1:
        found.append(f"has {len(starts)} engines at once")
    return found
