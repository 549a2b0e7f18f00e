"""The judge: what passes for one well-formed outcome, and what does not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slotd.errors import SlotQueueFull
from slotd.exchange.render import error_response, sse_error
from slotd.testing.chaos.asks import Ask, Service, draw_ask
from slotd.testing.chaos.judge import CODES, Answer, judge
from slotd.testing.fake_asks import vector
from slotd.testing.fake_shapes import SHAPES
from slotd.testing.fake_shapes import Answer as Spoken

ASK = Ask("chat", "chat", True, "one two three", 3, ("chat",))
WHOLE = replace(ASK, stream=False)
SSE = {"content-type": "text/event-stream"}


def spoken(ask: Ask, *, model: str = "chat") -> bytes:
    """The engine's answer to it, whole or as a stream."""
    if ask.dialect == "embeddings":
        return json.dumps({"model": model, "data": [{"embedding": vector(ask.text)}]}).encode()
    shape = SHAPES[ask.path](Spoken("id", model, 0, 1, False))
    if not ask.stream:
        return json.dumps(shape.whole(ask.text, "stop")).encode()
    first, *others = ask.text.split(" ")
    tokens = b"".join(shape.token(word) for word in (first, *(f" {word}" for word in others)))
    return shape.opening() + tokens + shape.closing(ask.text, "stop")


def answer(ask: Ask, body: bytes, status: int = 200, **headers: str) -> Answer:
    kind = SSE if ask.stream and status == 200 else {}
    return Answer(status, {**kind, **headers}, body, True)


@given(st.integers(0, 10_000))
def test_the_right_answer_to_any_request_is_in_order(seed: int) -> None:
    services = [Service("chat", models=("chat",)), Service("embed", "embedding", ("chat",))]
    ask = draw_ask(random.Random(seed), services, seed)
    if ask.wrong:
        assert judge(ask, answer(ask, spoken(ask))).flaw
    else:
        verdict = judge(ask, answer(ask, spoken(ask)))
        assert (verdict.flaw, verdict.ok) == ("", True)


def test_comments_between_events_are_no_part_of_an_answer() -> None:
    body = b": loading\n\n" + spoken(ASK).replace(b"\n\n", b"\n\n: still here\n\n", 1)
    assert judge(ASK, answer(ASK, body)).ok


def cut_frame(body: bytes) -> bytes:
    return body[:-1]


def no_end(body: bytes) -> bytes:
    return body.removesuffix(b"data: [DONE]\n\n")


def more_after_the_end(body: bytes) -> bytes:
    return body + b"data: {}\n\n"


def two_ends(body: bytes) -> bytes:
    return body + sse_error(SlotQueueFull("full", retry_after_s=1))


def plain_text(body: bytes) -> bytes:
    return body + b"proxy error\n\n"


def a_word_lost(body: bytes) -> bytes:
    return body.replace(b" two", b"")


def said_twice(body: bytes) -> bytes:
    return body.replace(b" two", b" two two")


def an_unknown_error(_body: bytes) -> bytes:
    return b'event: error\ndata: {"error":{"code":"oops","message":"m","type":"t"}}\n\n'


def a_bug(_body: bytes) -> bytes:
    return b'event: error\ndata: {"error":{"code":"internal.error","message":"m","type":"t"}}\n\n'


def an_error_in_disguise(_body: bytes) -> bytes:
    return b'data: {"error":{"code":"slot.stalled","message":"m","type":"t"}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    "spoil",
    [
        cut_frame,
        no_end,
        more_after_the_end,
        two_ends,
        plain_text,
        a_word_lost,
        said_twice,
        an_unknown_error,
        a_bug,
        an_error_in_disguise,
    ],
)
def test_a_stream_that_is_not_right(spoil: Any) -> None:
    assert judge(ASK, answer(ASK, spoken(ASK))).ok
    assert judge(ASK, answer(ASK, spoil(spoken(ASK)))).flaw


def test_a_stream_that_ends_in_an_error_event() -> None:
    begun = spoken(ASK).split(b"data: [DONE]")[0].split(b" three")[0].rpartition(b"\n\n")[0] + b"\n\n"
    error = sse_error(SlotQueueFull("full"))
    verdict = judge(ASK, answer(ASK, begun + error))
    assert (verdict.outcome, verdict.flaw) == ("event slot.queue_full", "")
    assert judge(ASK, answer(ASK, begun.replace(b"two", b"xxx") + error)).flaw


def test_a_whole_answer_that_is_not_right() -> None:
    assert judge(WHOLE, answer(WHOLE, spoken(WHOLE))).ok
    assert "model" in judge(WHOLE, answer(WHOLE, spoken(WHOLE, model="other"))).flaw
    assert judge(WHOLE, answer(WHOLE, spoken(WHOLE)[:-5])).flaw
    assert judge(WHOLE, answer(WHOLE, spoken(replace(WHOLE, text="of another")))).flaw
    assert judge(WHOLE, replace(answer(WHOLE, spoken(WHOLE)), ended=False)).flaw
    assert judge(WHOLE, Answer(None, {}, b"", False, "reset")).outcome == "no answer"
    vectors = Ask("embed", "embeddings", False, "a", 1, ("chat",))
    assert judge(vectors, answer(vectors, spoken(replace(vectors, text="b")))).flaw


def test_typed_errors() -> None:
    status, headers, body = error_response(SlotQueueFull("full", retry_after_s=2))
    shown = {k.decode(): v.decode() for k, v in headers}
    verdict = judge(ASK, answer(ASK, body, status, **shown))
    assert (verdict.outcome, verdict.code, verdict.flaw) == ("429 slot.queue_full", "slot.queue_full", "")
    assert judge(ASK, answer(ASK, body, 503, **shown)).flaw, "the status is not that of the code"
    assert judge(ASK, answer(ASK, body, status)).flaw, "no retry-after"
    assert judge(ASK, answer(ASK, b"full", status, **shown)).flaw, "plain text"
    assert judge(replace(ASK, wrong="no_route"), answer(ASK, body, status, **shown)).flaw


def test_every_code_is_known() -> None:
    assert CODES["slot.queue_full"] == 429
    assert CODES["slot.engine_lost"] == 502
    assert len(CODES) > 30
