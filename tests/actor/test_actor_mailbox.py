"""The mailbox under an owner that is written out: no actor, no supervisor."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from slotd.actor import Mailbox, Reply
from slotd.errors import ActorGone

Question = Reply[int]


def is_itself(reply: Question) -> Question:
    return reply


async def asking(mailbox: Mailbox[Question], outcomes: list[object]) -> None:
    """Ask once and note the outcome."""
    try:
        answer: int = await mailbox.ask(is_itself)
        outcomes.append(answer)
    except ActorGone as gone:
        outcomes.append(gone)


async def test_an_ask_is_answered() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking, mailbox, outcomes)
        question = await mailbox.receive()
        assert mailbox.open_asks == 1
        assert question.answer(42)
    assert outcomes == [42]
    assert mailbox.open_asks == 0
    assert question.abandoned


async def test_messages_arrive_in_the_order_they_were_posted() -> None:
    mailbox: Mailbox[int] = Mailbox("clerk")
    mailbox.open()
    assert all(mailbox.post(n) for n in range(5))
    assert [await mailbox.receive() for _ in range(5)] == [*range(5)]


async def test_before_it_is_opened_posts_are_dropped_and_asks_refused() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    assert not mailbox.is_open
    assert not mailbox.post(Reply())
    with pytest.raises(ActorGone) as caught:
        await mailbox.ask(is_itself)
    assert caught.value.actor == "clerk"
    assert caught.value.retry_after_s is not None
    with pytest.raises(ActorGone):
        await mailbox.receive()


async def test_closing_fails_the_asks_it_buffers_and_those_the_owner_holds() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    cause = ValueError("the owner's bug")
    outcomes: list[object] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking, mailbox, outcomes)
            held = await mailbox.receive()
            nursery.start_soon(asking, mailbox, outcomes)
            await trio.testing.wait_all_tasks_blocked()
            assert mailbox.open_asks == 2
            mailbox.close(cause)
            assert mailbox.open_asks == 0
            assert not mailbox.is_open
            assert not held.answer(1)  # too late, and harmless
    assert len(outcomes) == 2
    for gone in outcomes:
        assert isinstance(gone, ActorGone)
        assert gone.__cause__ is cause
    assert len({id(gone) for gone in outcomes}) == 2  # each asker's traceback is its own


async def test_an_answer_given_before_the_close_stands() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking, mailbox, outcomes)
        question = await mailbox.receive()
        question.answer(7)
        mailbox.close()
    assert outcomes == [7]


async def test_closed_again_is_closed() -> None:
    mailbox: Mailbox[int] = Mailbox("clerk")
    mailbox.close()
    mailbox.open()
    mailbox.close()
    mailbox.close(ValueError())
    assert not mailbox.post(1)


async def test_two_owners_at_once_are_refused() -> None:
    mailbox: Mailbox[int] = Mailbox("clerk")
    mailbox.open()
    with pytest.raises(RuntimeError, match="'clerk' is open already"):
        mailbox.open()
    assert mailbox.post(1)
    assert await mailbox.receive() == 1


async def test_opened_again_it_starts_empty_and_serves_those_who_hold_it() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    mailbox.post(Reply())
    mailbox.close()
    mailbox.open()
    outcomes: list[object] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking, mailbox, outcomes)
            (await mailbox.receive()).answer(2)
    assert outcomes == [2]


async def test_opened_again_before_the_failed_asker_has_run() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking, mailbox, outcomes)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.close()
        mailbox.open()  # no checkpoint in between
    assert isinstance(outcomes[0], ActorGone)
    assert mailbox.open_asks == 0


async def test_a_cancelled_asker_leaves_nothing_open(autojump_clock: trio.testing.MockClock) -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    with trio.move_on_after(1) as scope:
        await mailbox.ask(is_itself)
    assert scope.cancelled_caught
    assert mailbox.open_asks == 0
    question = await mailbox.receive()
    assert question.abandoned
    assert not question.answer(1)


async def test_a_question_that_cannot_be_made_is_not_left_open() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()

    def make(reply: Question) -> Question:
        raise KeyError("field")

    with pytest.raises(KeyError):
        await mailbox.ask(make)
    assert mailbox.open_asks == 0


async def test_the_refusal_reaches_the_asker_as_it_is() -> None:
    mailbox: Mailbox[Question] = Mailbox("clerk")
    mailbox.open()
    refusal = ValueError("no room")
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ValueError, match="no room") as caught:
                await mailbox.ask(is_itself)
            assert caught.value is refusal

        nursery.start_soon(ask)
        (await mailbox.receive()).refuse(refusal)
    assert mailbox.open_asks == 0


async def test_a_release_posted_from_a_cancelled_task_arrives() -> None:
    mailbox: Mailbox[str] = Mailbox("clerk")
    mailbox.open()
    scope = trio.CancelScope()

    async def leaseholder() -> None:
        with scope:
            try:
                await trio.sleep_forever()
            finally:
                mailbox.post("release")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaseholder)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert scope.cancelled_caught
    with trio.fail_after(5):
        assert await mailbox.receive() == "release"


async def test_a_grant_that_meets_a_cancellation_is_settled_one_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whichever comes first in the same batch, the owner's view and the asker's agree
    once the asker's release is counted: this is why a release is unconditional."""
    for grant_first in (True, False):
        mailbox: Mailbox[Question | str] = Mailbox("clerk")
        mailbox.open()
        scope = trio.CancelScope()
        granted: list[int] = []

        async def ask(
            mailbox: Mailbox[Question | str] = mailbox,
            scope: trio.CancelScope = scope,
            granted: list[int] = granted,
        ) -> None:
            with scope:
                try:
                    granted.append(await mailbox.ask(is_itself))
                    await trio.sleep_forever()
                finally:
                    mailbox.post("release")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            question = await mailbox.receive()
            assert isinstance(question, Reply)
            if grant_first:
                assert question.answer(1)
                scope.cancel()
            else:
                scope.cancel()
                question.answer(1)
        assert granted == ([1] if grant_first else [])
        assert await mailbox.receive() == "release"


async def test_a_question_that_is_put_is_open_until_it_is_waited_for_or_given_up() -> None:
    box: Mailbox[Question] = Mailbox("clerk")
    box.open()
    given_up, answered = box.put(is_itself), box.put(is_itself)
    assert not given_up.settled
    assert box.open_asks == 2
    given_up.abandon()
    assert box.open_asks == 1
    for _ in range(2):
        (await box.receive()).answer(7)
    assert box.open_asks == 0
    assert (answered.answered, answered.result()) == (True, 7)
    refused = box.put(is_itself)
    box.close()
    assert refused.settled
    assert not refused.answered
    with pytest.raises(ActorGone):
        refused.result()
    with pytest.raises(ActorGone):
        box.put(is_itself)


async def test_one_that_is_answered_as_it_is_put_is_never_open() -> None:
    box: Mailbox[Question] = Mailbox("clerk")

    def take(question: Question) -> bool:
        assert box.open_asks == 0
        return question.answer(7)

    box.open(take)
    assert box.put(is_itself).result() == 7
    assert box.open_asks == 0
