"""The actor's loop, its children and its deadlines, without a supervisor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio
from clerk import (
    Bug,
    Clerk,
    Crash,
    Echo,
    Finish,
    Hold,
    Journal,
    Message,
    Note,
    Refuse,
    Refused,
    Spawn,
    opened,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from slotd.actor import Actor, Mailbox
from slotd.errors import ActorGone


@pytest.fixture
def mailbox() -> Mailbox[Message]:
    return Mailbox("clerk")


async def expect_gone(mailbox: Mailbox[Message], make: Callable[..., Message]) -> None:
    with pytest.raises(ActorGone):
        await mailbox.ask(make)


async def run_to_crash(clerk: Actor[Message], crashes: list[BaseException]) -> None:
    try:
        await clerk.run()
    except Exception as exc:
        crashes.append(exc)


def only(crashes: list[BaseException]) -> BaseException:
    """The one error in the one crash, out of its groups."""
    (error,) = crashes
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


# --- asks ----------------------------------------------------------------------------


async def test_asks_end_in_the_answer_or_the_refusal(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clerk(mailbox).run)
        await opened(mailbox)
        assert await mailbox.ask(lambda r: Echo(5, r)) == 5
        with pytest.raises(Refused):
            await mailbox.ask(Refuse)
        nursery.cancel_scope.cancel()


async def test_a_normal_end_returns_fails_open_asks_and_ends_the_children(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    ended = trio.Event()

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Clerk(mailbox).run)
            await opened(mailbox)
            mailbox.post(Spawn(child))
            nursery.start_soon(expect_gone, mailbox, Hold)
            await wait_all_tasks_blocked()
            mailbox.post(Finish())
            mailbox.post(Note("never handled"))
            nursery.start_soon(expect_gone, mailbox, Hold)  # buffered behind the end
    assert ended.is_set()
    assert mailbox.open_asks == 0
    assert not mailbox.is_open


async def test_a_crash_in_a_handler_fails_every_asker(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    crashes: list[BaseException] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_to_crash, Clerk(mailbox), crashes)
            await opened(mailbox)
            for _ in range(3):
                nursery.start_soon(expect_gone, mailbox, Hold)
            await wait_all_tasks_blocked()
            mailbox.post(Crash())
            nursery.start_soon(expect_gone, mailbox, Hold)  # buffered, never handled
            with pytest.raises(ActorGone) as caught:
                await mailbox.ask(Crash)
    error = only(crashes)
    assert isinstance(error, Bug)
    assert caught.value.__cause__ is error
    assert mailbox.open_asks == 0


async def test_askers_do_not_wait_for_the_children_to_end(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    async def slow_to_die() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(8, shield=True):
                await trio.sleep_forever()

    crashes: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_to_crash, Clerk(mailbox), crashes)
        await opened(mailbox)
        mailbox.post(Spawn(slow_to_die))
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await expect_gone(mailbox, Crash)
            await expect_gone(mailbox, Crash)  # closed, not open with nobody at home
        assert not crashes
    assert trio.current_time() == 8  # the incarnation ends when its children have
    assert isinstance(only(crashes), Bug)


async def test_a_crash_in_a_child_ends_the_actor_and_fails_its_askers(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    async def child() -> None:
        await trio.sleep(2)
        raise Bug("in a child")

    crashes: list[BaseException] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_to_crash, Clerk(mailbox), crashes)
            await opened(mailbox)
            mailbox.post(Spawn(child))
            nursery.start_soon(expect_gone, mailbox, Hold)
    assert trio.current_time() == 2
    assert isinstance(only(crashes), Bug)
    assert mailbox.open_asks == 0
    assert not mailbox.is_open


async def test_cancelling_the_actor_fails_its_askers(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    scope = trio.CancelScope()

    async def cancellable() -> None:
        with scope:
            await Clerk(mailbox).run()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancellable)
            await opened(mailbox)
            nursery.start_soon(expect_gone, mailbox, Hold)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert not mailbox.is_open


async def test_a_crash_while_starting_closes_the_mailbox(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    class Stillborn(Clerk):
        def started(self) -> None:
            raise Bug("at birth")

    crashes: list[BaseException] = []
    await run_to_crash(Stillborn(mailbox), crashes)
    assert isinstance(only(crashes), Bug)
    assert not mailbox.is_open


async def test_a_second_actor_on_an_open_mailbox_leaves_the_first_alone(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clerk(mailbox).run)
        await opened(mailbox)
        with trio.fail_after(5), pytest.raises(RuntimeError, match="open already"):
            await Clerk(mailbox).run()
        assert await mailbox.ask(lambda r: Echo(1, r)) == 1
        nursery.cancel_scope.cancel()


async def test_the_next_incarnation_opens_the_same_mailbox(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    journal = Journal()
    crashes: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        for n in range(3):
            nursery.start_soon(run_to_crash, Clerk(mailbox, journal), crashes)
            await opened(mailbox)
            assert await mailbox.ask(partial(Echo, n)) == n
            await expect_gone(mailbox, Crash)
            await wait_all_tasks_blocked()
    assert journal.entries == ["started"] * 3
    assert len(crashes) == 3


# --- deadlines -----------------------------------------------------------------------


async def test_a_deadline_comes_when_no_message_does(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    journal = Journal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clerk(mailbox, journal).run)
        await opened(mailbox)
        assert await mailbox.ask(lambda r: Hold(r, 3)) == -1
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 3
    assert journal.entries == ["started", "due at 3"]


async def test_a_message_does_not_put_a_deadline_off(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clerk(mailbox).run)
        await opened(mailbox)

        async def chatter() -> None:
            while True:
                mailbox.post(Note("hello"))
                await trio.sleep(0.9)

        nursery.start_soon(chatter)
        assert await mailbox.ask(lambda r: Hold(r, 3)) == -1
        assert trio.current_time() == 3
        nursery.cancel_scope.cancel()


async def test_a_deadline_that_is_due_goes_before_the_messages_that_wait(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    journal = Journal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Clerk(mailbox, journal).run)
        await opened(mailbox)

        async def hold() -> None:
            assert await mailbox.ask(lambda r: Hold(r, 5)) == -1

        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        autojump_clock.jump(6)
        for text in ("in hand", "waiting"):
            mailbox.post(Note(text))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert journal.entries == ["started", "due at 6", "in hand", "waiting"]


async def test_a_mailbox_that_never_empties_does_not_starve_the_clock(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    class Busy(Clerk):
        """Each note takes a second and begets the next, so the mailbox is never empty."""

        def handle(self, message: Message) -> None:
            super().handle(message)
            if isinstance(message, Note):
                autojump_clock.jump(1)
                self.mailbox.post(message)

    journal = Journal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Busy(mailbox, journal).run)
        await opened(mailbox)
        mailbox.post(Note("tick"))
        with trio.fail_after(100):
            assert await mailbox.ask(lambda r: Hold(r, 10)) == -1
        nursery.cancel_scope.cancel()
    at = next(int(e.removeprefix("due at ")) for e in journal.entries if e.startswith("due"))
    assert at <= 12  # the second in which the hold itself waited, ten, and one note


async def test_a_deadline_not_dealt_with_is_a_crash_that_says_so(
    mailbox: Mailbox[Message], autojump_clock: MockClock
) -> None:
    class Idle(Clerk):
        def on_deadline(self, now: float) -> None:
            pass

    crashes: list[BaseException] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_to_crash, Idle(mailbox), crashes)
            await opened(mailbox)
            await expect_gone(mailbox, lambda r: Hold(r, 1))
    error = only(crashes)
    assert isinstance(error, RuntimeError)
    assert "'clerk'" in str(error)
    assert "not dealt with" in str(error)


async def test_a_deadline_may_end_the_actor(mailbox: Mailbox[Message], autojump_clock: MockClock) -> None:
    class Lifespan(Clerk):
        def next_deadline(self) -> float:
            return 7

        def on_deadline(self, now: float) -> None:
            self.finish()

    with trio.fail_after(10):
        await Lifespan(mailbox).run()
    assert trio.current_time() == 7


async def test_an_actor_must_say_how_it_handles_messages(autojump_clock: MockClock) -> None:
    mailbox: Mailbox[int] = Mailbox("abstract")
    crashes: list[BaseException] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await Actor(mailbox).run()
            except* NotImplementedError as group:
                crashes.append(group)

        nursery.start_soon(run)
        while not mailbox.is_open:
            await trio.lowlevel.checkpoint()
        mailbox.post(1)
    assert "Actor must say" in str(only(crashes))
