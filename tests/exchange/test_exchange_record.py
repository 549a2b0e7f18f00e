"""Request records, and token counts from the end of an answer."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from slotd.exchange.record import RecordBook, RequestRecord, UsageTail

DOCUMENT = b'{"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}}'
EVENTS = (
    b'data: {"choices":[]}\n\ndata: {"usage":{"prompt_tokens":12,"completion_tokens":34}}\n\ndata: [DONE]\n\n'
)
MESSAGES = b'event: message_start\ndata: {"usage":{"input_tokens":12,"output_tokens":1}}\n\n' + (
    b'event: message_delta\ndata: {"usage":{"output_tokens":34}}\n\nevent: message_stop\ndata: {}\n\n'
)


def tail(data: bytes, size: int) -> UsageTail:
    usage = UsageTail()
    for at in range(0, len(data), size):
        usage.feed(data[at : at + size])
    return usage


@given(st.integers(1, 200), st.sampled_from([0, 5000, 100_000]))
def test_counts_are_found_however_the_answer_is_cut(size: int, before: int) -> None:
    for answer in (DOCUMENT, EVENTS, MESSAGES):
        assert tail(b"x" * before + answer, max(size, before // 50 + 1)).read() == (12, 34)


@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_only_the_end_is_kept(chunks: list[bytes]) -> None:
    usage = UsageTail()
    for chunk in chunks:
        usage.feed(chunk)
    assert usage._join() == b"".join(chunks)[-4096:]


def test_text_that_speaks_of_tokens_is_not_taken_for_the_count() -> None:
    text = json.dumps({"content": 'say "prompt_tokens": 99 and "completion_tokens": 98'}).encode()
    assert tail(text, 7).read() == (None, None)


def test_the_end_of_a_stream_is_known_in_every_dialect() -> None:
    assert tail(EVENTS, 10).ended()
    assert tail(MESSAGES, 10).ended()
    assert tail(b'event: response.completed\ndata: {"type":"response.completed"}\n\n', 10).ended()
    assert not tail(EVENTS[:-20], 10).ended()


def record(id: str) -> RequestRecord:
    return RequestRecord(id, "/v1/chat/completions", "127.0.0.1", trio.current_time(), 0.0)


async def test_the_book_keeps_the_live_and_the_last_few() -> None:
    finished: list[str] = []
    book = RecordBook(3, lambda r: finished.append(r.id))
    records = [record(f"r{n}") for n in range(6)]
    for r in records:
        book.open(r)
    assert book.live_count == 6
    for r in records[:5]:
        book.close(r)
        book.close(r)
    assert finished == ["r0", "r1", "r2", "r3", "r4"], "each once"
    assert [r.id for r in book.recent()] == ["r4", "r3", "r2"], "newest first, no more than asked for"
    assert [r.id for r in book.live()] == ["r5"]
    assert book.find("r5") is records[5]
    assert book.find("r3") is records[3]
    assert book.find("r0") is None
    assert records[4].total_s is not None
    assert records[4].as_dict()["phase"] == "done"
    assert json.dumps(records[5].as_dict())


@pytest.mark.parametrize("depth", [1, 2])
async def test_what_is_made_on_behalf_of_a_request_has_its_cause(depth: int) -> None:
    book = RecordBook(10, lambda r: None)
    family = [record("r0"), *(replace(record(f"r{n + 1}"), parent=f"r{n}") for n in range(depth))]
    other = replace(record("other"), parent="another")
    for r in (*family, other):
        book.open(r)
    assert book.cancel("r0")
    for r in (other, *reversed(family)):
        r.outcome = "client_gone"  # as it looks from inside
        book.close(r)
    assert [(r.outcome, r.error) for r in family] == [("error", "request.cancelled")] * len(family)
    assert (other.outcome, other.error) == ("client_gone", None)


async def test_what_had_ended_before_keeps_its_own_end() -> None:
    book = RecordBook(10, lambda r: None)
    for outcome, error in (("ok", None), ("error", "slot.stalled"), ("client_gone", None)):
        parent, child = record("r"), replace(record("r.1"), parent="r")
        book.open(parent)
        book.open(child)
        if outcome != "client_gone":
            assert book.cancel("r")
        child.outcome, child.error = outcome, error
        book.close(child)
        book.close(parent)
        assert (child.outcome, child.error) == (outcome, error)


async def test_only_a_live_request_can_be_cancelled() -> None:
    book = RecordBook(3, lambda r: None)
    r = record("r")
    book.open(r)
    assert book.cancel("r")
    assert r.scope.cancel_called
    book.close(r)
    assert not book.cancel("r")
    assert not book.cancel("nobody")
