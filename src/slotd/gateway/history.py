"""``/api/events/history`` and ``/api/why/ID``: what the journal knows, in data and in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from quart import Response, request
from quart_trio import QuartTrio

from slotd.errors import JournalUnavailable, RequestInvalid, RequestNotFound
from slotd.exchange.record import RequestRecord
from slotd.gateway.services import Services
from slotd.journal.entries import Entry, KeptRequest
from slotd.journal.story import story
from slotd.journal.when import moment

__all__ = ["add_history"]

MAX_LIMIT = 10_000
DEFAULT_LIMIT = 100


def add_history(app: QuartTrio, services: Services, json: Callable[[Any], Response]) -> None:
    """Register the routes. Questions to the journal are bounded in time and in size."""
    journal, records, run_id = services.journal, services.records, services.run_id

    @app.get("/api/events/history")
    async def history() -> Response:
        args = request.args
        # Before the question, so that a reader who goes on after it misses nothing.
        last_seq = services.bus.last_seq
        entries = await journal.events(
            since=_moment("since"),
            until=_moment("until"),
            kind=args.get("kind") or None,
            slot=args.get("slot") or None,
            limit=_limit(args.get("limit")),
        )
        seen = max((e.seq for e in entries if e.run == run_id), default=0)
        return json({"events": [e.as_dict() for e in entries], "last_seq": max(seen, last_seq)})

    @app.get("/api/why/<id>")
    async def why(id: str) -> Response:
        live = records.find(id)
        try:
            kept = await journal.request(id)
            if live is not None and not _has(kept, run_id, live):
                around = await journal.around(live.as_dict())
                kept.insert(0, KeptRequest(run_id, live.as_dict(), tuple(around)))
        except JournalUnavailable:
            if live is None:
                raise
            kept = [KeptRequest(run_id, live.as_dict(), ())]
        if not kept:
            raise RequestNotFound(f"no request {id!r} is live or in the journal, {await _reach()}")
        return json({"id": id, "requests": [_told(k) for k in kept]})

    async def _reach() -> str:
        oldest = await journal.horizon()
        if oldest is None:
            return "which holds no request yet"
        at = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(oldest))
        return f"which goes back to {at}"


def _has(kept: Iterable[KeptRequest], run: str, live: RequestRecord) -> bool:
    return any(k.run == run and k.record.get("began_unix") == live.began_unix for k in kept)


def _told(kept: KeptRequest) -> dict[str, Any]:
    return {
        "run": kept.run,
        "record": kept.record,
        "story": [line.as_dict() for line in story(kept.record, kept.events)],
        "events": [_brief(e) for e in kept.events],
    }


def _brief(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.as_dict().items() if key != "log"}


def _moment(name: str) -> float | None:
    text = request.args.get(name)
    if not text:
        return None
    try:
        return moment(text, time.time())
    except ValueError as error:
        raise RequestInvalid(f"{name}: {error}", param=name) from error


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LIMIT and len(text) < 9):
        raise RequestInvalid(f"limit={text!r} is not a count from 1 to {MAX_LIMIT}", param="limit")
    return int(text)
