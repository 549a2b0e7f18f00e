"""Which headers cross slotd, in either direction."""

from __future__ import annotations

import pytest

from slotd.exchange.headers import for_client, for_upstream

HOP = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
]


@pytest.mark.parametrize("name", HOP)
def test_what_is_about_one_hop_ends_here(name: str) -> None:
    headers = [(name.encode(), b"x"), (b"x-kept", b"1")]
    assert for_upstream(headers) == [(b"x-kept", b"1")]
    assert for_client(headers, events=False) == [(b"x-kept", b"1")]


def test_what_connection_names_is_about_this_hop_too() -> None:
    headers = [
        (b"connection", b"close, X-One ,x-two"),
        (b"x-one", b"1"),
        (b"x-two", b"2"),
        (b"x-three", b"3"),
    ]
    assert for_upstream(headers) == [(b"x-three", b"3")]
    named = [(b"connection", b"keep-alive"), *headers[1:], (b"connection", b"x-one, X-Two")]
    assert for_client(named, events=False) == [(b"x-three", b"3")]


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "x-api-key",
        "host",
        "content-length",
        "expect",
        "accept-encoding",
        "x-conversation-id",
        "x-slotd-wait",
        "x-slotd-anything",
    ],
)
def test_what_is_for_slotd_does_not_reach_the_upstream(name: str) -> None:
    assert for_upstream([(name.encode(), b"secret")]) == []


def test_everything_else_goes_on_in_order_with_repetitions() -> None:
    headers = [
        (b"content-type", b"a/b"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"anthropic-version", b"2023-06-01"),
    ]
    assert for_upstream(headers) == headers
    assert for_client(headers, events=False) == headers


def test_slotd_alone_speaks_for_itself() -> None:
    theirs = [
        (b"server", b"llama.cpp"),
        (b"date", b"now"),
        (b"x-request-id", b"theirs"),
        (b"x-slotd-route", b"another slotd"),
    ]
    assert for_client(theirs, events=False) == []


def test_a_length_holds_for_a_body_but_not_for_a_stream_that_may_grow_an_error() -> None:
    document = [(b"content-type", b"application/json"), (b"content-length", b"5")]
    assert for_client(document, events=False) == document
    stream = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"content-length", b"5")]
    assert for_client(stream, events=True) == [(b"content-type", b"text/event-stream; charset=utf-8")]
