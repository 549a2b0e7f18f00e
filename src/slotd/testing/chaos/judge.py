"""Whether what came back is exactly one well-formed outcome. Pure.

A request ends in one of: the complete answer to it; a typed error with a known
code and the status of that code; a stream that ends as its API says, or in one
well-formed error event, and has nothing after it. Anything else is a *flaw*.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slotd import errors
from slotd.errors import SlotdError
from slotd.testing.chaos.asks import Ask
from slotd.testing.fake_asks import vector

__all__ = ["CODES", "Answer", "Verdict", "judge"]


def _codes(kind: type[SlotdError]) -> dict[str, int]:
    found = {kind.code: kind.status}
    for child in kind.__subclasses__():
        found |= _codes(child)
    return found


CODES: Mapping[str, int] = _codes(errors.SlotdError)
"""Every code that slotd may answer with, and its status."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw. ``status`` None: not even a head. ``ended``: the message came to its proper end.

    ``broke`` says in words how the connection failed, if it did.
    """

    status: int | None
    headers: Mapping[str, str]
    body: bytes
    ended: bool
    broke: str = ""

    @property
    def id(self) -> str | None:
        """The request's id, if slotd gave it one."""
        return self.headers.get("x-request-id")


@dataclass(frozen=True, slots=True)
class Verdict:
    """``outcome`` is the row of a table; ``code`` and ``details`` are those of a typed error.

    ``flaw`` says what is wrong with the answer; empty if nothing is.
    """

    outcome: str
    flaw: str = ""
    code: str = ""
    details: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the request was answered, completely."""
        return self.outcome in ("ok", "ok stream")


class _Flaw(Exception):
    """The answer is not well-formed."""


def judge(ask: Ask, answer: Answer) -> Verdict:
    """What came of a request that its client stayed for."""
    try:
        return _judge(ask, answer)
    except _Flaw as flaw:
        return Verdict("flawed", str(flaw))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        return Verdict("flawed", f"the answer is not of its API's shape ({exc!r}): {answer.body[-300:]!r}")


def _judge(ask: Ask, answer: Answer) -> Verdict:
    if answer.status is None:
        return Verdict("no answer", f"no response at all: {answer.broke}")
    if not answer.ended:
        return Verdict("cut", f"cut after {len(answer.body)} bytes: {answer.broke}: {answer.body[-200:]!r}")
    if answer.status != 200:
        return _error_answer(ask, answer)
    if ask.wrong:
        raise _Flaw(f"a wrong request ({ask.wrong}) was answered with 200")
    if ask.stream:
        return _stream(ask, answer)
    document = json.loads(answer.body)
    _same_model(ask, document["model"])
    _same(ask, _words_of(ask, document))
    return Verdict("ok")


def _error_answer(ask: Ask, answer: Answer) -> Verdict:
    error = _typed(json.loads(answer.body))
    code = error["code"]
    if CODES[code] != answer.status:
        raise _Flaw(f"{code} with status {answer.status}, not {CODES[code]}")
    if code == "slot.loading" and ask.wait:
        raise _Flaw("slot.loading for a request that was ready to wait")
    if (code == "dispatch.no_route") != (ask.wrong == "no_route"):
        raise _Flaw(f"{code} for a request that was {ask.wrong or 'sound'}")
    if (code == "request.invalid_json") != (ask.wrong == "no_json"):
        raise _Flaw(f"{code} for a request that was {ask.wrong or 'sound'}")
    after = answer.headers.get("retry-after")
    if after is not None and not (after.isdigit() and int(after) >= 1):
        raise _Flaw(f"retry-after: {after!r}")
    if code == "slot.queue_full" and after is None:
        raise _Flaw("slot.queue_full without retry-after")
    return Verdict(f"{answer.status} {code}", code=code, details=error.get("details"))


def _typed(document: Any) -> dict[str, Any]:
    error: dict[str, Any] = document["error"]
    code = error["code"]
    if code not in CODES:
        raise _Flaw(f"an unknown code: {code!r}: {error}")
    if code.startswith("internal."):
        raise _Flaw(f"a bug of slotd: {error}")
    if not error["message"] or not error["type"]:
        raise _Flaw(f"an error without words: {error}")
    return error


# --- streams --------------------------------------------------------------------


def _stream(ask: Ask, answer: Answer) -> Verdict:
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise _Flaw(f"a stream of {kind!r}")
    text = ""
    end = ""
    verdict = Verdict("ok stream")
    for name, data in _events(answer.body):
        if end:
            raise _Flaw(f"{name or 'data'} {data[:100]!r} after the end of the stream ({end})")
        if name == "error":
            error = _typed(json.loads(data))
            verdict = Verdict(f"event {error['code']}", code=error["code"], details=error.get("details"))
            end = "an error event"
        elif data == "[DONE]" or name == "message_stop":
            end = data
        else:
            text += _piece(ask, json.loads(data))
    if not end:
        raise _Flaw(f"a stream without an end: {answer.body[-200:]!r}")
    if verdict.code:
        if ask.echoes and not ask.text.startswith(text):
            raise _Flaw(f"{text!r} is not how {ask.text!r} begins")
    else:
        _same(ask, text)
    return verdict


def _events(body: bytes) -> list[tuple[str, str]]:
    """The events of a stream that consists of whole events and comments and nothing else."""
    if not body.endswith(b"\n\n"):
        raise _Flaw(f"the stream ends inside an event: {body[-200:]!r}")
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            field, colon, value = line.partition(":")
            if not colon or field not in ("", "event", "data", "id"):
                raise _Flaw(f"not a line of an event: {line!r}")
            if field == "event":
                name = value.removeprefix(" ")
            elif field == "data":
                data.append(value.removeprefix(" "))
        if data:
            found.append((name, "\n".join(data)))
    return found


def _piece(ask: Ask, document: dict[str, Any]) -> str:
    """The words that one event adds to the answer."""
    if "error" in document:
        raise _Flaw(f"an error that is no error event: {document}")
    if ask.dialect == "messages":
        if document["type"] == "message_start":
            _same_model(ask, document["message"]["model"])
        return str(document["delta"]["text"]) if document["type"] == "content_block_delta" else ""
    _same_model(ask, document["model"])
    choice = document["choices"][0]
    return str((choice["delta"].get("content") or "") if ask.dialect == "chat" else choice["text"])


# --- what it says ------------------------------------------------------------------


def _words_of(ask: Ask, document: dict[str, Any]) -> str:
    match ask.dialect:
        case "embeddings":
            (item,) = document["data"]
            numbers = item["embedding"]
            if not numbers:
                raise _Flaw("an empty vector")
            if ask.echoes and [round(x, 6) for x in numbers] != [round(x, 6) for x in vector(ask.text)]:
                raise _Flaw("the vector of another text")
            return ask.text
        case "messages":
            return "".join(block["text"] for block in document["content"])
        case "completions":
            return str(document["choices"][0]["text"])
        case _:
            return str(document["choices"][0]["message"]["content"])


def _same(ask: Ask, text: str) -> None:
    if ask.echoes and text != ask.text:
        raise _Flaw(f"answered {text!r} to {ask.text!r}")


def _same_model(ask: Ask, model: str) -> None:
    if ask.models and model not in ask.models:
        raise _Flaw(f"slot {ask.slot} answered with the model {model!r}")
