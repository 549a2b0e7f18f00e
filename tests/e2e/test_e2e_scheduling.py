"""Who is served when: never more at a time than allowed, in order of arrival, each lease once."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Later, Start, ask, client, dial, eventually, path_to

from slotd.testing import Knobs, fake_slot


async def test_sixteen_chats_on_four_places(slotd_harness: Start) -> None:
    # The engine itself would take all sixteen: it is slotd that holds them back.
    slot = fake_slot(
        Knobs(tokens=5, token_delay_s=0.01, parallel=64, load_delay_s=1), default=True, max_parallel=4
    )
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": slot}) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            answers = []
            for number in range(16):  # arriving while it loads, one after the other
                send = partial(http.post, CHAT, json=ask(), headers={"x-number": str(number)})
                answers.append(Later(nursery, send))
                await eventually(lambda n=number: slotd.snapshot("chat").queued == n + 1)  # type: ignore[misc]
            assert slotd.snapshot("chat").leases == 0
            for answer in answers:
                assert (await answer.result()).status_code == 200
            requests = (await slotd.fake("chat").stats())["requests"]
            # Four at a time are granted in one moment, and any of these may reach the engine first.
            order = [int(r["headers"]["x-number"]) for r in requests]
            assert sorted(order) == list(range(16))
            assert all(abs(place - number) < 4 for place, number in enumerate(order)), order
            assert Counter(r["outcome"] for r in requests) == {"finished": 16}
            # Seats are taken lowest first: the highest ever taken tells how many sat at once.
            assert max(r["seat"] for r in requests) == 3
            assert slotd.snapshot("chat").starts == 1


async def test_a_slot_at_its_limit_gives_places_in_order(slotd_harness: Start) -> None:
    slot = fake_slot(Knobs(tokens=100_000, token_delay_s=0.01), default=True, max_parallel=1)
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"chat": slot}) as slotd:
            await slotd.load("chat")
            wires = [await dial(slotd) for _ in range(4)]

            def came() -> int:
                return slotd.snapshot("chat").leases + slotd.snapshot("chat").queued

            for number, wire in enumerate(wires):
                await wire.post(CHAT, ask(stream=True))
                while came() <= number:  # noqa: ASYNC110 # nobody announces it
                    await trio.sleep(0.002)
            for number, wire in enumerate(wires):
                await wire.head()
                await wire.until(b"word0")
                assert slotd.snapshot("chat").leases == 1
                assert slotd.snapshot("chat").queued == 3 - number
                await wire.hang_up()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("express")
async def test_one_request_takes_one_lease_and_gives_it_back_once(slotd_harness: Start, stream: bool) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"chat": fake_slot(Knobs(tokens=3), default=True)}) as slotd,
            client(slotd) as http,
        ):
            await slotd.load("chat")
            with slotd.observe("chat") as seen:
                assert (await http.post(CHAT, json=ask(stream=stream))).status_code == 200
                assert await path_to(seen, "ready") == ["serving", "ready"]
                await http.post(CHAT, json=ask(stream=stream))
                assert await path_to(seen, "ready") == ["serving", "ready"]
            assert slotd.snapshot("chat").leases == 0
            assert slotd.slotd.slots.mailbox("chat").is_open


async def test_two_slots_load_side_by_side(slotd_harness: Start) -> None:
    slots = {name: fake_slot(Knobs(load_delay_s=0.5, tokens=1)) for name in ("one", "two")}
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness(slots) as slotd,
            client(slotd) as http,
            trio.open_nursery() as nursery,
        ):
            one = Later(nursery, lambda: http.post(CHAT, json=ask("one")))
            two = Later(nursery, lambda: http.post(CHAT, json=ask("two")))
            await slotd.wait_for("one", "warming")
            await slotd.wait_for("two", "warming")
            assert slotd.snapshot("one").state == "warming"
            assert (await one.result()).status_code == (await two.result()).status_code == 200
