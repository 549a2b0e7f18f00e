"""For any interleaving of publishes and reads, no hole goes unannounced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from slotd.events import Event, EventBus, Gap, Subscription, types

Step = tuple[Literal["publish", "read", "cancelled read"], int]

steps = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "read", "cancelled read"]), st.integers(0, 3)),
    max_size=60,
)


@dataclass
class Reader:
    """Follows one unfiltered subscription and checks each item against the last."""

    subscription: Subscription
    expected: int
    """The number that must come next, unless a gap says otherwise."""
    gaps: int = 0

    def take(self, item: Event | Gap) -> None:
        if isinstance(item, Gap):
            assert item.missed > 0
            assert item.next_seq == self.expected + item.missed
            self.expected = item.next_seq
            self.gaps += 1
        else:
            assert item.seq == self.expected
            assert item.data["n"] == item.seq
            self.expected += 1

    async def poll(self) -> bool:
        """Read one item if there is one. Nothing else runs, so no answer within no time is none."""
        with trio.move_on_after(0.001):
            self.take(await anext(self.subscription))
            return True
        return False


@given(
    buffer=st.integers(1, 6),
    head=st.integers(0, 10),
    after=st.integers(-1, 12),
    rooms=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    steps=steps,
)
def test_every_hole_is_announced_by_a_gap_of_its_size(
    buffer: int, head: int, after: int, rooms: list[int], steps: list[Step]
) -> None:
    async def main() -> None:
        bus = EventBus(buffer)

        def publish() -> None:
            bus.publish("tick", {"n": bus.last_seq + 1})

        for _ in range(head):
            publish()
        first = after + 1 if 0 <= after <= head else 1
        readers = [Reader(bus.subscribe(after=after, max_buffered=room), first) for room in rooms]
        greedy = Reader(bus.subscribe(max_buffered=1), head + 1)
        for what, who in steps:
            reader = readers[who % len(readers)]
            if what == "publish":
                publish()
                assert await greedy.poll()
            elif what == "read":
                await reader.poll()
            else:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await anext(reader.subscription)
        bus.close()
        for reader in (*readers, greedy):
            async for item in reader.subscription:
                reader.take(item)
            assert reader.expected == bus.last_seq + 1  # nothing is missing at the end either
        assert greedy.gaps == 0  # the slow ones cost the quick one nothing

    trio.run(main, clock=MockClock(autojump_threshold=0))


@given(
    slots=st.lists(st.sampled_from("ab"), max_size=40),
    reads=st.sets(st.integers(0, 39)),
    room=st.integers(1, 4),
)
def test_with_a_selection_gaps_count_what_was_selected(slots: list[str], reads: set[int], room: int) -> None:
    async def main() -> None:
        bus = EventBus(1)
        seen: list[Event | Gap] = []
        with bus.subscribe(max_buffered=room, match=lambda e: e.slot == "a") as reader:
            for n, slot in enumerate(slots):
                bus.publish("tick", {}, slot=slot)
                if n in reads:
                    with trio.move_on_after(0.001):
                        seen.append(await anext(reader))
            bus.close()
            seen.extend([item async for item in reader])
        wanted = [n for n, slot in enumerate(slots, 1) if slot == "a"]
        at = 0
        for item in seen:
            if isinstance(item, Gap):
                at += item.missed
                assert item.next_seq == wanted[at]
            else:
                assert item.seq == wanted[at]
                at += 1
        assert at == len(wanted)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_kinds_are_distinct_and_listed() -> None:
    kinds = {name: value for name, value in vars(types).items() if name.isupper() and name != "KINDS"}
    assert set(kinds.values()) == types.KINDS
    assert len(set(kinds.values())) == len(kinds)
    assert set(kinds) <= set(types.__all__)
    assert all(len(kind.split(".")) == 2 and kind == kind.lower() for kind in kinds.values())
