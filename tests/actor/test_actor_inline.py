"""Messages that are handled in their sender's task: as if the loop had taken them, only sooner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from slotd.actor import Actor, Mailbox, Reply
from slotd.errors import ActorGone


@dataclass
class Say:
    word: Any
    then: Callable[[Echo], object] | None = None
    reply: Reply[Any] | None = None


@dataclass
class _Seen:
    words: list[Any] = field(default_factory=list)
    tasks: list[trio.lowlevel.Task] = field(default_factory=list)


class Echo(Actor[Say]):
    """Notes what it is told, by which task; has one deadline, if any."""

    def __init__(self, mailbox: Mailbox[Say]) -> None:
        super().__init__(mailbox)
        self.seen = _Seen()
        self.due = float("inf")
        self.handling = False

    def next_deadline(self) -> float:
        return self.due

    def on_deadline(self, now: float) -> None:
        self.due = float("inf")
        self.seen.words.append(f"due {now:g}")

    def handle(self, message: Say) -> None:
        assert not self.handling, "one at a time"
        self.handling = True
        self.seen.words.append(message.word)
        self.seen.tasks.append(trio.lowlevel.current_task())
        if message.then is not None:
            message.then(self)
        if message.reply is not None:
            message.reply.answer(message.word)
        self.handling = False


async def resting(nursery: trio.Nursery) -> Echo:
    actor = Echo(Mailbox("echo"))
    nursery.start_soon(actor.run)
    await trio.testing.wait_all_tasks_blocked()
    return actor


async def test_at_rest_an_actor_answers_without_a_turn_of_the_loop(nursery: trio.Nursery) -> None:
    actor = await resting(nursery)
    assert actor.mailbox.post(Say(1))
    assert actor.seen.words == [1]
    assert actor.seen.tasks == [trio.lowlevel.current_task()]
    assert await actor.mailbox.ask(lambda reply: Say(2, reply=reply)) == 2


async def test_before_its_loop_rests_messages_wait(nursery: trio.Nursery) -> None:
    actor = Echo(Mailbox("echo"))
    nursery.start_soon(actor.run)
    await actor.mailbox.wait_open()
    actor.mailbox.post(Say(1))
    actor.mailbox.post(Say(2))
    await trio.testing.wait_all_tasks_blocked()
    assert actor.seen.words == [1, 2]


async def test_what_it_posts_to_itself_is_handled_after_and_nothing_overtakes_it(
    nursery: trio.Nursery,
) -> None:
    actor = await resting(nursery)
    actor.mailbox.post(Say("first", then=lambda a: a.mailbox.post(Say("own"))))
    actor.mailbox.post(Say("later"))
    assert actor.seen.words == ["first"]
    await trio.testing.wait_all_tasks_blocked()
    assert actor.seen.words == ["first", "own", "later"]


async def test_two_actors_that_tell_each_other(nursery: trio.Nursery) -> None:
    one, two = await resting(nursery), await resting(nursery)

    def back(_: Echo) -> None:
        one.mailbox.post(Say("answer"))

    one.mailbox.post(Say("ask", then=lambda _: two.mailbox.post(Say("asked", then=back))))
    assert (one.seen.words, two.seen.words) == (["ask"], ["asked"])
    await trio.testing.wait_all_tasks_blocked()
    assert one.seen.words == ["ask", "answer"]


async def test_a_crash_is_the_actors_and_not_the_senders() -> None:
    def crash(_: Echo) -> None:
        raise ZeroDivisionError

    mailbox: Mailbox[Say] = Mailbox("echo")
    ended = trio.Event()

    async def live() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await Echo(mailbox).run()
        assert caught.group_contains(ZeroDivisionError)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await trio.testing.wait_all_tasks_blocked()
        assert mailbox.post(Say(1, then=crash))  # it is not the sender's crash
        with trio.fail_after(5), pytest.raises(ActorGone):
            await mailbox.ask(lambda reply: Say(2, then=crash, reply=reply))
        await ended.wait()


async def test_finish_ends_the_loop(nursery: trio.Nursery) -> None:
    actor = await resting(nursery)
    actor.mailbox.post(Say(1, then=lambda a: a.finish()))
    assert actor.mailbox.post(Say(2)) or True
    await trio.testing.wait_all_tasks_blocked()
    assert not actor.mailbox.is_open
    assert actor.seen.words == [1]


async def test_a_deadline_that_comes_nearer_wakes_the_loop(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    actor = await resting(nursery)
    at = trio.current_time() + 3

    def arm(a: Echo) -> None:
        a.due = at

    actor.mailbox.post(Say("arm", then=arm))
    await trio.sleep(10)
    assert actor.seen.words == ["arm", f"due {at:g}"]


async def test_a_deadline_that_has_come_goes_first(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    actor = await resting(nursery)

    def arm(a: Echo) -> None:
        a.due = 5.0

    actor.mailbox.post(Say("arm", then=arm))
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(6)
    actor.mailbox.post(Say("late"))
    await trio.testing.wait_all_tasks_blocked()
    assert actor.seen.words == ["arm", "due 6", "late"]


async def test_a_cancelled_asker_leaves_an_answer_unread(nursery: trio.Nursery) -> None:
    actor = await resting(nursery)
    with trio.CancelScope() as scope:
        scope.cancel()
        await actor.mailbox.ask(lambda reply: Say(1, reply=reply))
    assert scope.cancelled_caught
    assert actor.seen.words == [1]
    assert actor.mailbox.open_asks == 0


@given(st.lists(st.integers(0, 3), max_size=12))
def test_messages_are_handled_in_the_order_in_which_they_came(plan: list[int]) -> None:
    """0: post. 1: post one that posts another. 2: post from another task. 3: let the loop run."""

    async def main() -> None:
        sent: list[int] = []
        async with trio.open_nursery() as nursery:
            actor = await resting(nursery)

            def post(chain: bool) -> None:
                number = len(sent)
                sent.append(number)
                actor.mailbox.post(Say(number, then=(lambda _: post(False)) if chain else None))

            async def other() -> None:
                await trio.lowlevel.checkpoint()
                post(False)

            for step in plan:
                if step == 3:
                    await trio.testing.wait_all_tasks_blocked()
                elif step == 2:
                    nursery.start_soon(other)
                else:
                    post(step == 1)
            await trio.testing.wait_all_tasks_blocked()
            assert actor.seen.words == sent
            nursery.cancel_scope.cancel()

    trio.run(main)
