"""What llama.cpp's server says, as data: answers and events of each API. No I/O.

A :class:`Shape` turns the tokens of one answer into what one endpoint sends,
streamed and whole. The field names and their order are those of the server as
of 2026; only what a supervisor or a client may look at is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

__all__ = ["SHAPES", "Answer", "Finish", "Shape", "error_document", "models_document", "sse"]

Finish = Literal["stop", "length"]
_encode = msgspec.json.encode


def sse(document: Mapping[str, Any], event: str = "") -> bytes:
    """One server-sent event."""
    name = b"event: %s\n" % event.encode() if event else b""
    return b"%sdata: %s\n\n" % (name, _encode(document))


def error_document(status: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": kind}}


def models_document(models: tuple[str, ...], created: int) -> dict[str, Any]:
    data = [
        {
            "id": name,
            "aliases": [name],
            "tags": [],
            "object": "model",
            "created": created,
            "owned_by": "llamacpp",
        }
        for name in models
    ]
    return {
        "models": [{"name": n, "model": n, "type": "model"} for n in models],
        "object": "list",
        "data": data,
    }


@dataclass(slots=True)
class Answer:
    """What is known of one answer; the shell fills in the rest as tokens come."""

    id: str
    model: str
    created: int
    prompt_tokens: int
    include_usage: bool
    sent: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0

    def usage(self) -> dict[str, Any]:
        return {
            "completion_tokens": self.sent,
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.sent,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def response_usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens,
            "output_tokens": self.sent,
            "total_tokens": self.prompt_tokens + self.sent,
            "input_tokens_details": {"cached_tokens": 0},
        }

    def timings(self) -> dict[str, Any]:
        return {
            "cache_n": 0,
            **_speed("prompt", self.prompt_tokens, self.prompt_ms),
            **_speed("predicted", self.sent, self.predicted_ms),
        }


def _speed(what: str, n: int, ms: float) -> dict[str, Any]:
    return {
        f"{what}_n": n,
        f"{what}_ms": round(ms, 3),
        f"{what}_per_token_ms": ms / n if n else 0.0,
        f"{what}_per_second": 1000.0 * n / ms if ms else 0.0,
    }


class Shape:
    """One API's way to say an answer. ``prefix`` starts the answer's id."""

    prefix: ClassVar[str] = "chatcmpl"

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def opening(self) -> bytes:
        """What a stream says with its first token, before it."""
        return b""

    def token(self, text: str) -> bytes:
        raise NotImplementedError

    def closing(self, text: str, finish: Finish) -> bytes:
        """What a stream says after its last token; ``text`` is all of it."""
        raise NotImplementedError

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        """The answer to a request that did not ask for a stream."""
        raise NotImplementedError

    def _base(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "choices": choices,
            "created": self.answer.created,
            "model": self.answer.model,
            "system_fingerprint": "fake",
            "object": kind,
            "id": self.answer.id,
        }


_DONE = b"data: [DONE]\n\n"


class Chat(Shape):
    def _chunk(self, delta: dict[str, Any], finish: Finish | None = None) -> dict[str, Any]:
        return self._base("chat.completion.chunk", [{"finish_reason": finish, "index": 0, "delta": delta}])

    def opening(self) -> bytes:
        return sse(self._chunk({"role": "assistant", "content": None}))

    def token(self, text: str) -> bytes:
        return sse(self._chunk({"content": text}))

    def closing(self, text: str, finish: Finish) -> bytes:
        last = self._chunk({}, finish)
        timings = {"timings": self.answer.timings()}
        if not self.answer.include_usage:
            return sse(last | timings) + _DONE
        usage = self._base("chat.completion.chunk", []) | {"usage": self.answer.usage()} | timings
        return sse(last) + sse(usage) + _DONE

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        document = self._base("chat.completion", [{"finish_reason": finish, "index": 0, "message": message}])
        return document | {"usage": self.answer.usage(), "timings": self.answer.timings()}


class Completions(Shape):
    def _document(self, text: str, finish: Finish | None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return self._base("text_completion", [choice])

    def token(self, text: str) -> bytes:
        return sse(self._document(text, None))

    def closing(self, text: str, finish: Finish) -> bytes:
        return sse(self.whole("", finish)) + _DONE

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        return self._document(text, finish) | {
            "usage": self.answer.usage(),
            "timings": self.answer.timings(),
        }


class Native(Shape):
    """llama.cpp's own ``/completion`` and ``/infill``."""

    prefix = "native"

    def token(self, text: str) -> bytes:
        piece = {"index": 0, "content": text, "tokens": [], "stop": False, "id_slot": -1}
        counts = {"tokens_predicted": self.answer.sent, "tokens_evaluated": self.answer.prompt_tokens}
        return sse(piece | counts)

    def closing(self, text: str, finish: Finish) -> bytes:
        return sse(self.whole("", finish))

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "id_slot": 0,
            "stop": True,
            "model": self.answer.model,
            "tokens_predicted": self.answer.sent,
            "tokens_evaluated": self.answer.prompt_tokens,
            "stop_type": "eos" if finish == "stop" else "limit",
            "timings": self.answer.timings(),
        }


class Messages(Shape):
    """Anthropic's shape."""

    _REASON: ClassVar[dict[Finish, str]] = {"stop": "end_turn", "length": "max_tokens"}

    def opening(self) -> bytes:
        message = self._message([], None, 0)
        block = {"type": "text", "text": ""}
        return sse({"type": "message_start", "message": message}, "message_start") + sse(
            {"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start"
        )

    def token(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def closing(self, text: str, finish: Finish) -> bytes:
        delta = {"stop_reason": self._REASON[finish], "stop_sequence": None}
        end = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": self.answer.sent}}
        return (
            sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
            + sse(end, "message_delta")
            + sse({"type": "message_stop"}, "message_stop")
        )

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        return self._message([{"type": "text", "text": text}], self._REASON[finish], self.answer.sent)

    def _message(self, content: list[dict[str, Any]], reason: str | None, sent: int) -> dict[str, Any]:
        return {
            "id": self.answer.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.answer.model,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {
                "cache_read_input_tokens": 0,
                "input_tokens": self.answer.prompt_tokens,
                "output_tokens": sent,
            },
        }


class Responses(Shape):
    prefix = "resp"

    def opening(self) -> bytes:
        begun = {"id": self.answer.id, "object": "response", "status": "in_progress"}
        part = {"type": "output_text", "text": ""}
        return (
            _typed("response.created", response=begun)
            + _typed("response.in_progress", response=begun)
            + _typed("response.output_item.added", item=self._item([], "in_progress"))
            + _typed("response.content_part.added", item_id=self._item_id, part=part)
        )

    def token(self, text: str) -> bytes:
        return _typed("response.output_text.delta", item_id=self._item_id, delta=text)

    def closing(self, text: str, finish: Finish) -> bytes:
        response = self.whole(text, finish)
        del response["completed_at"]  # the server leaves it out of streams
        return (
            _typed("response.output_text.done", item_id=self._item_id, text=text)
            + _typed("response.content_part.done", item_id=self._item_id, part=_part(text))
            + _typed("response.output_item.done", item=self._item([_part(text)], "completed"))
            + _typed("response.completed", response=response, timings=self.answer.timings())
        )

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        return {
            "completed_at": self.answer.created,
            "created_at": self.answer.created,
            "id": self.answer.id,
            "model": self.answer.model,
            "object": "response",
            "output": [self._item([_part(text)], "completed")],
            "status": "completed",
            "usage": self.answer.response_usage(),
        }

    @property
    def _item_id(self) -> str:
        return self.answer.id.replace(self.prefix, "msg", 1)

    def _item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "content": content,
            "id": self._item_id,
            "role": "assistant",
            "status": status,
            "type": "message",
        }


def _typed(kind: str, **members: Any) -> bytes:
    return sse({"type": kind, **members}, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


SHAPES: dict[str, type[Shape]] = {
    "/v1/chat/completions": Chat,
    "/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/messages": Messages,
    "/v1/responses": Responses,
    "/completion": Native,
    "/completions": Native,
    "/infill": Native,
}
"""The endpoints that generate text."""
