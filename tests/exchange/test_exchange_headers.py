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
    assert list(for_upstream(headers)) == [(b"x-kept", b"1")]
    assert list(for_client(headers)) == [(b"x-kept", b"1")]


def test_what_connection_names_is_about_this_hop_too() -> None:
    headers = [
        (b"connection", b"close, X-One ,x-two"),
        (b"x-one", b"1"),
        (b"x-two", b"2"),
        (b"x-three", b"3"),
    ]
    assert list(for_upstream(headers)) == [(b"x-three", b"3")]
    named = [(b"connection", b"keep-alive"), *headers[1:], (b"connection", b"x-one, X-Two")]
    assert list(for_client(named)) == [(b"x-three", b"3")]


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
    assert list(for_upstream([(name.encode(), b"secret")])) == []


def test_everything_else_goes_on_in_order_with_repetitions() -> None:
    headers = [
        (b"content-type", b"a/b"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"anthropic-version", b"2023-06-01"),
    ]
    assert list(for_upstream(headers)) == headers
    assert list(for_client(headers)) == headers


def test_slotd_alone_speaks_for_itself() -> None:
    theirs = [
        (b"server", b"llama.cpp"),
        (b"date", b"now"),
        (b"x-request-id", b"theirs"),
        (b"x-slotd-route", b"another slotd"),
    ]
    assert list(for_client(theirs)) == []
