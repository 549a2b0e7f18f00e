"""A request from its record's beginning to its end, whatever carries it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from slotd.errors import SlotdError, StreamStalled
from slotd.exchange.answer import Answer
from slotd.exchange.inbound import ClientGone
from slotd.exchange.record import RecordBook

__all__ = ["accounted"]

log = structlog.get_logger("slotd")


TELL_S = 1.0
"""How long who is ended from outside may take to take in why, where the rest of its task is ended too."""


async def accounted(
    records: RecordBook, answer: Answer, work: Callable[[], Awaitable[None]], *, scope_entered: bool = False
) -> None:
    """Have ``work`` give the answer, with its record open; returns when the answer is complete.

    Errors become an error response, or the last event of a stream that has
    begun; one that is not typed is a bug, is logged, and ends this request
    alone. A body that has begun and is no event stream can only be broken
    off: the typed error is raised then, for the adapter to close the
    connection. :class:`ClientGone` passes through. Cancelled when the
    client leaves. Ended through ``records``, it is answered with the cause
    given there. One that slotd makes itself and has no more time for (the
    deadline of the record's scope has passed) is an error, and nobody's leaving.

    ``scope_entered``: the record's scope is the caller's, who is in it. What
    ends this request then ends the caller's task at its next wait.
    """
    record = answer.record
    records.open(record)
    try:
        if scope_entered:
            ended = False
            try:
                await _answered(answer, work)
            except BaseException as exc:
                ended = record.cause is not None and _is_cancellation(exc)
                if not ended:
                    raise
            if ended and not answer.complete:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + TELL_S):
                    await _tell(answer)
        else:
            with record.scope:
                await _answered(answer, work)
            if record.scope.cancelled_caught and not answer.complete:
                await _tell(answer)
    finally:
        record.tokens_in, record.tokens_out = answer.usage.read()
        if record.outcome == "live":
            # Cancelled, bare or in a group. Clients hang up once they have
            # read the end, or an error in a stream, often before we get to
            # see it ourselves.
            if record.error is not None:
                record.outcome = "error"
            else:
                record.outcome = "ok" if answer.complete else "client_gone"
            if not answer.complete and record.scope.deadline <= trio.current_time():
                record.outcome, record.error = "error", StreamStalled.code
        records.close(record)


async def _tell(answer: Answer) -> None:
    """Why it was ended from outside, if it was."""
    cause = answer.record.cause
    try:
        if cause is not None and not await answer.fail(cause):
            raise cause
    finally:
        cause = None  # whose traceback leads back here


def _is_cancellation(exc: BaseException) -> bool:
    """Whether it is, bare or in a group, nothing but a cancellation."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(trio.Cancelled)[1] is None
    return isinstance(exc, trio.Cancelled)


async def _answered(answer: Answer, work: Callable[[], Awaitable[None]]) -> None:
    record = answer.record
    failed: SlotdError | None = None
    try:
        await work()
    except SlotdError as error:
        # Who is ended from outside may see what that did to others first.
        failed = record.cause or error
    except ClientGone:
        raise
    except Exception:
        log.exception("a request met a bug", request=record.id, path=record.path)
        failed = SlotdError("slotd itself failed at this request; its log says why")
    if failed is not None:
        try:
            if not await answer.fail(failed):
                raise failed
        finally:
            failed = None  # whose traceback leads back here: a request is not left to the garbage collector
        return
    refused = (record.status or 0) >= 400 or record.error is not None
    record.outcome = "error" if refused else "ok"
