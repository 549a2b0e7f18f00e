from __future__ import annotations

import pytest
import trio
import trio.testing

from slotd.actor import Reply


async def test_the_first_answer_settles_it() -> None:
    reply: Reply[int] = Reply()
    assert not reply.settled
    assert reply.answer(1)
    assert reply.settled
    assert not reply.answer(2)
    assert not reply.refuse(ValueError("late"))
    assert await reply.wait() == 1


async def test_the_first_refusal_settles_it() -> None:
    reply: Reply[int] = Reply()
    assert reply.refuse(ValueError("no"))
    assert not reply.answer(2)
    assert not reply.refuse(KeyError("late"))
    with pytest.raises(ValueError, match="no"):
        await reply.wait()


async def test_none_is_an_answer() -> None:
    reply: Reply[None] = Reply()
    reply.answer(None)
    await reply.wait()
    assert reply.settled


@pytest.mark.parametrize("settle", [lambda r: r.answer(1), lambda r: r.refuse(ValueError())])
def test_the_owner_learns_that_nobody_reads_any_more(settle: object) -> None:
    reply: Reply[int] = Reply()
    reply.abandon()
    assert reply.abandoned
    assert callable(settle)
    assert settle(reply) is False
    assert reply.settled


async def test_the_wait_wakes_with_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    reply: Reply[str] = Reply()
    async with trio.open_nursery() as nursery:

        async def owner() -> None:
            await trio.sleep(3)
            reply.answer("yes")

        nursery.start_soon(owner)
        with trio.fail_after(5):
            assert await reply.wait() == "yes"
    assert trio.current_time() == 3


async def test_the_wait_ends_with_the_callers_deadline(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(2):
            await Reply[int]().wait()
