"""Everything at once: clients, operators and deaths on three slots, and afterwards nothing is left of it.

What each client does is drawn from a seed. What comes of it depends on the
machine's timing, so only what must hold for every interleaving is asserted.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from e2e_tools import CHAT, Start, ask, dial, eventually, frames

from slotd.events import Gap, types
from slotd.process import hunt
from slotd.process.identity import run_marker
from slotd.slot.state import LEGAL, SlotState
from slotd.testing import Harness, Knobs, command, fake_slot

CLIENTS, DEEDS = 8, 24
LIMIT_S = 45
"""A hang guard; a storm takes about six seconds on two cores."""

SLOTS = ("one", "two", "many")
SERVES = {"one": {"one"}, "two": {"two"}, "many": {"m1", "m2"}, "m1": {"m1"}, "m2": {"m2"}, "broken": set()}
"""Who may answer a request for a name. ``many`` is swapped between two models, and one that does not load."""

VERBS = ("load", "unload", "restart", "kill")


class Client:
    """One source of trouble. ``sent`` counts inference requests, ``answers`` outcomes by request id."""

    def __init__(self, slotd: Harness, seed: int) -> None:
        self._slotd = slotd
        self._draw = random.Random(seed)
        self.sent = 0
        self.answers: dict[str, int] = {}

    async def run(self) -> None:
        for _ in range(DEEDS):
            deed = self._draw.choices(
                (self.whole, self.leave, self.command, self.swap, self.murder), (10, 4, 4, 3, 1)
            )[0]
            await deed()

    async def whole(self) -> None:
        """Ask and read the answer to its end."""
        name, stream = self._draw.choice(list(SERVES)), self._draw.random() < 0.5
        async with await dial(self._slotd) as wire:
            self.sent += 1
            await wire.post(CHAT, ask(name, stream=stream))
            head = await wire.head()
            body = await wire.rest()
            id = head.headers["x-request-id"]
            assert id not in self.answers
            self.answers[id] = head.status
            if head.status != 200:
                well_typed(head.status, body)
                return
            if not stream:
                assert json.loads(body)["model"] in SERVES[name]
                return
            seen = frames(body)
            last = seen.pop()
            assert last.data == "[DONE]" or last.event == "error", last
            if last.event == "error":
                assert not last.error["code"].startswith("internal.")
            assert {json.loads(frame.data)["model"] for frame in seen} <= SERVES[name]

    async def leave(self) -> None:
        """Ask and hang up at some point, perhaps after the end."""
        patience_s = self._draw.choice((0, 0.001, 0.01, 0.05, 0.3))
        body = ask(self._draw.choice(list(SERVES)), stream=self._draw.random() < 0.7)
        wire = await dial(self._slotd)
        async with wire:
            self.sent += 1
            await wire.post(CHAT, body)
            with trio.move_on_after(patience_s):
                await wire.head()
                await wire.rest()
            if self._draw.random() < 0.5:
                await wire.reset()

    async def command(self) -> None:
        await self._operate(self._draw.choice(SLOTS), self._draw.choice(VERBS), {})

    async def swap(self) -> None:
        await self._operate("many", "swap", {"model": self._draw.choice(("m1", "m2", "broken"))})

    async def _operate(self, slot: str, verb: str, body: dict[str, str]) -> None:
        async with await dial(self._slotd) as wire:
            await wire.post(f"/api/slots/{slot}/{verb}", body)
            head = await wire.head()
            answer = await wire.rest()
            if head.status != 200:
                well_typed(head.status, answer)

    async def murder(self) -> None:
        """Kill an engine behind slotd's back, if it has a process just now."""
        name = self._draw.choice(SLOTS)
        if self._slotd.snapshot(name).pid is not None:
            try:
                self._slotd.kill(name)
            except ProcessLookupError:
                return  # it has ended, and the snapshot is about to say so


def well_typed(status: int, body: bytes) -> None:
    """An error that a client can act on, and no bug of slotd."""
    error = json.loads(body)["error"]
    assert status in (404, 409, 429, 502, 503, 504), (status, error)
    assert not error["code"].startswith("internal."), error
    assert error["message"]


def storm_slots(base: Path) -> tuple[dict[str, dict[str, object]], str]:
    """The slots' tables, and the models of the one that is swapped."""
    more = ""
    for model in ("m1", "m2", "broken"):
        (base / model).write_bytes(b"weights")
        more += f'[models.{model}]\nsource = "file:{base / model}"\n'
    engine = [*command(Knobs(tokens=8, token_delay_s=0.002, load_delay_s=0.02, fork_grandchild=True))]
    named = '[ "$0" = broken ] && exit 3; exec "$@" --models="$0"'
    many = ["/bin/sh", "-c", named, "{model}", *engine]
    slots = {
        name: fake_slot(
            Knobs(models=(name,), tokens=8, token_delay_s=0.002, load_delay_s=0.02),
            max_parallel=2,
            max_queue=4,
        )
        for name in ("one", "two")
    }
    slots["many"] = fake_slot(model="m1", max_parallel=2, max_queue=8) | {"command": many}
    return slots, more


def assert_lawful(slotd: Harness, seen: list[tuple[str, SlotState, SlotState]]) -> None:
    """Every transition is an edge of the table and begins where the last one ended."""
    at = dict.fromkeys(SLOTS, SlotState.OFFLINE)
    for slot, before, after in seen:
        assert before is at[slot], (slot, before, after, at[slot])
        assert after in LEGAL[before], (slot, before, after)
        at[slot] = after
    assert at == {name: slotd.snapshot(name).state for name in SLOTS}


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_leaves_nothing(slotd_harness: Start, tmp_path: Path, seed: int) -> None:
    slots, more = storm_slots(tmp_path)
    server = {"recent_requests": 4096, "event_buffer": 100_000}
    with trio.fail_after(LIMIT_S):
        async with AsyncExitStack() as stack:
            slotd = await stack.enter_async_context(slotd_harness(slots, server=server, more=more))
            clients = [Client(slotd, seed * 1000 + number) for number in range(CLIENTS)]
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.run)

            for name in SLOTS:
                await slotd.stop(name)
                assert await slotd.state(name) is SlotState.OFFLINE
            records = slotd.slotd.records
            await eventually(lambda: records.live_count == 0, "live records")
            for name in SLOTS:
                snapshot = slotd.snapshot(name)
                assert (snapshot.leases, snapshot.queued, snapshot.pid) == (0, 0, None), snapshot
            # The guardian is told the marker in its arguments and does not carry it.
            assert hunt.find(hunt.snapshot(), [], [run_marker(slotd.slotd.run_id)]) == []

            # One record for each request; a client that leaves at once may not even have asked.
            recent = records.recent()
            ids = Counter(record.id for record in recent)
            assert set(ids.values()) == {1}
            answers = {id: status for client in clients for id, status in client.answers.items()}
            assert answers.keys() <= ids.keys()
            assert len(recent) <= sum(client.sent for client in clients)
            for record in recent:
                assert record.outcome in ("ok", "error", "client_gone"), record
                if record.id in answers:
                    assert record.status == answers[record.id]
                    assert record.outcome == "ok" or record.error, record
            await wire_metrics(slotd, len(recent))

            transitions = []
            with slotd.slotd.bus.subscribe(after=0) as events:
                for _ in range(slotd.slotd.bus.last_seq):
                    event = await anext(events)
                    assert not isinstance(event, Gap)
                    assert event.kind != types.ACTOR_CRASHED, event
                    if event.kind == types.SLOT_TRANSITION:
                        assert event.slot is not None
                        edge = SlotState(event.data["from"]), SlotState(event.data["to"])
                        transitions.append((event.slot, *edge))
            assert_lawful(slotd, transitions)


async def wire_metrics(slotd: Harness, finished: int) -> None:
    """``/metrics`` counts as many finished requests, and none that serves or waits."""
    async with await dial(slotd) as wire:
        await wire.get("/metrics")
        await wire.head()
        lines = (await wire.rest()).decode().splitlines()
    values = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    total = sum(float(value) for name, _, value in values if name.startswith("slotd_requests_total{"))
    assert total == finished
    gauges = ("slotd_slot_leases{", "slotd_slot_queued{", "slotd_requests_live")
    assert [float(value) for name, _, value in values if name.startswith(gauges)] == [0] * 7
