"""Header fields and the memory of heads."""

from __future__ import annotations

import pytest

from slotd.wire.fields import Fields, lines
from slotd.wire.memo import HeadMemo


def test_what_follows_is_worked_out_once() -> None:
    calls: list[Fields] = []

    def count(fields: Fields) -> int:
        calls.append(fields)
        return len(fields)

    fields = Fields([(b"a", b"1"), (b"b", b"2")])
    assert [fields.derive(count), fields.derive(count)] == [2, 2]
    assert calls == [fields]
    assert fields.derive(lines) == b"a: 1\r\nb: 2\r\n"


def test_a_failure_is_not_kept() -> None:
    fields = Fields([(b"a", b"1\r\nb: 2")])
    for _ in range(2):
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            fields.derive(lines)


HEAD = b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 5\r\nC: d"


def taught(head: bytes = HEAD, fields: int = 3, length: int | None = 5) -> HeadMemo[str]:
    memo: HeadMemo[str] = HeadMemo()
    memo.learn(head + b"\r\n\r\nhello", len(head), fields, length, "it")
    return memo


def test_a_head_is_known_whatever_its_length_says() -> None:
    memo = taught()
    for digits in (b"5", b"0", b"123456789012345"):
        head = HEAD.replace(b"5", digits)
        assert memo.find(head + b"\r\n\r\n", len(head)) == ("it", int(digits))


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"A: b", b"A: c"),
        HEAD.replace(b"C: d", b"C: e"),
        HEAD.replace(b": 5", b": "),
        HEAD.replace(b": 5", b": -5"),
        HEAD.replace(b": 5", b": 5 "),
        HEAD.replace(b": 5", b": 1234567890123456"),
        HEAD.replace(b"content-length", b"Content-Length"),
        HEAD + b"\r\ncontent-length: 5",
    ],
)
def test_and_no_other(head: bytes) -> None:
    assert taught().find(head + b"\r\n\r\n", len(head)) is None


def test_one_without_a_length_is_not_taken_for_one_with_an_empty_one() -> None:
    last = b"HTTP/1.1 200 OK\r\ncontent-length: 5"
    memo = taught(last, 1)
    assert memo.find(last + b"\r\n\r\n", len(last)) == ("it", 5)
    assert memo.find(last[:-1] + b"\r\n\r\n", len(last) - 1) is None


@pytest.mark.parametrize(
    ("head", "fields", "length"),
    [
        (HEAD, 3, 6),
        (HEAD, 3, None),
        (HEAD.replace(b": 5", b":  5"), 3, 5),
        (HEAD.replace(b"A: b\r\n", b"A: b\n"), 3, 5),
        (HEAD + b"\r\n folded", 3, 5),
        (HEAD + b"\r\nX: " + b"x" * HeadMemo.LONGEST, 4, 5),
    ],
    ids=["another length", "no length", "two spaces", "a bare LF", "a folded line", "too long"],
)
def test_what_could_be_read_in_two_ways_is_not_learnt(head: bytes, fields: int, length: int | None) -> None:
    assert taught(head, fields, length).find(head + b"\r\n\r\n", len(head)) is None


def test_it_has_a_bound() -> None:
    memo: HeadMemo[int] = HeadMemo()
    for n in range(10 * HeadMemo.ROOM):
        head = b"HTTP/1.1 200 OK\r\nX: %d" % n
        memo.learn(head + b"\r\n\r\n", len(head), 1, None, n)
        assert memo.find(head + b"\r\n\r\n", len(head)) == (n, None)
        assert len(memo) <= HeadMemo.ROOM
