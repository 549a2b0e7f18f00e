"""One scope for all requests of a connection: what ends one of them leaves the next alone."""

from __future__ import annotations

import pytest
import trio
from express_world import World, post, with_lane

from slotd.errors import RequestCancelled
from slotd.exchange.accounted import accounted
from slotd.exchange.answer import Answer
from slotd.exchange.inbound import Inbound, Outbound
from slotd.exchange.record import RecordBook, RequestRecord

SSE = [(b"content-type", b"text/event-stream")]
DONE = b"data: 1\n\ndata: [DONE]\n\n"
ENDED = RequestCancelled("an operator cancelled this request")


class Accounts:
    """Stands for the exchange: accounts for what ``work`` does, which is called with the body."""

    def __init__(self) -> None:
        self.finished: list[RequestRecord] = []
        self.book = RecordBook(10, self.finished.append)

    async def carry(self, inbound: Inbound, out: Outbound) -> None:
        record = RequestRecord(inbound.id, inbound.path, "", trio.current_time(), 0.0, scope=inbound.scope)
        answer = Answer(out, record, inbound.endpoint.dialect)

        async def work() -> None:
            match inbound.body:
                case b"waits":
                    await trio.sleep_forever()
                case b"said all":  # an upstream that has not closed yet
                    answer.begin(200, SSE)
                    await answer.send(DONE)
                    await trio.sleep_forever()
                case b"said all of a document":
                    answer.begin(200, [(b"content-length", b"2")])
                    await answer.send(b"{}")
                    await trio.sleep_forever()
                case b"ends itself":  # in the instant in which it is ended
                    answer.begin(200, [(b"content-length", b"2")])
                    await answer.send(b"{}")
                    self.book.end(record, ENDED)
                case body:
                    await trio.lowlevel.checkpoint()
                    answer.begin(200, [(b"content-length", b"%d" % len(body))])
                    await answer.send(body)

        await accounted(self.book, answer, work, scope_entered=inbound.scope_entered)

    def end(self) -> None:
        """As an operator does."""
        (record,) = self.book.live()
        self.book.end(record, ENDED)

    @property
    def outcomes(self) -> list[tuple[str, str | None]]:
        return [(record.outcome, record.error) for record in self.finished]


@pytest.mark.parametrize("ahead", [True, False])
async def test_the_request_after_one_that_was_ended_is_answered(ahead: bool) -> None:
    """Also where it had been received already."""
    exchange = Accounts()

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"waits") + post(b"next") * ahead)
        exchange.end()
        assert (await peer.answer()).code == "request.cancelled"
        if not ahead:
            await peer.send(post(b"next"))
        assert (await peer.answer()).body == b"next"
        assert exchange.outcomes == [("error", "request.cancelled"), ("ok", None)]

    await with_lane(test, exchange.carry)


async def test_one_that_is_ended_as_it_ends_leaves_nothing_to_the_next() -> None:
    exchange = Accounts()

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"ends itself") + post(b"next"))
        assert (await peer.answer()).body == b"{}"
        assert (await peer.answer()).body == b"next"

    await with_lane(test, exchange.carry)


async def test_what_is_handed_over_after_one_that_was_ended_is_in_no_scope_of_it() -> None:
    exchange = Accounts()
    odd = post(b"{}").replace(b"POST", b"PUT")

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"waits") + odd)
        exchange.end()
        assert (await peer.answer()).code == "request.cancelled"
        await peer.send(b"more")
        assert world.handed == [odd + b"more"]
        assert world.serving == 1, "cancelled in the other lane"

    await with_lane(test, exchange.carry)


async def test_an_answer_that_was_complete_has_nothing_behind_it() -> None:
    """A stream that has had its [DONE] gets no error event, and the connection goes on."""
    exchange = Accounts()

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"said all"))
        exchange.end()
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += await peer.stream.receive_some()
        assert b"request.cancelled" not in got
        assert exchange.outcomes == [("ok", None)]
        await peer.send(post(b"next"))
        assert (await peer.answer()).body == b"next"

    await with_lane(test, exchange.carry)


async def test_a_document_that_was_complete_keeps_its_connection() -> None:
    exchange = Accounts()

    async def test(world: World) -> None:
        peer = world.dial()
        await peer.send(post(b"said all of a document"))
        exchange.end()
        assert (await peer.answer()).body == b"{}"
        await peer.send(post(b"next"))
        assert (await peer.answer()).body == b"next"
        assert exchange.outcomes == [("ok", None)] * 2

    await with_lane(test, exchange.carry)
