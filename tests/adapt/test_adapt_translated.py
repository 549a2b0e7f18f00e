"""One call for one call: sound relayed as it comes, documents converted, refusals told. Real sockets."""

from __future__ import annotations

import pytest
import trio
from adapt_tools import GUARD_S, Told, call, engine, response, serve

from slotd.adapt import Ask, Call, Document, Translated
from slotd.adapt import translated as module
from slotd.engine.apis import APIS
from slotd.errors import AnswerTooLarge, EngineError, RequestUnprocessable, SlotdError
from slotd.wire.http1 import ConnectFailed, Http1Pool, UpstreamBroken

RELAYED = Translated(lambda asked: Ask("/there", asked.body, "text/odd", answer_type="audio/wav"))
PLAIN = Translated(lambda asked: Ask("/there", asked.body))
TURNED = Translated(
    lambda asked: Ask("/there", b"{}", convert=lambda said: Document(said[::-1], "text/plain"))
)
ASKED = call("/v1/audio/speech", b"words")


async def test_the_engine_gets_the_ask_and_nothing_of_the_clients() -> None:
    with trio.fail_after(GUARD_S):
        told, request = await serve(RELAYED, ASKED, response(b"sound", "text/html"))
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /there HTTP/1.1\r\n")
        assert b"content-type: text/odd" in head.lower()
        assert body == b"words"
        assert (told.status, told.body) == (200, b"sound")
        assert told.headers == {b"content-type": b"audio/wav", b"content-length": b"5"}


async def test_without_another_name_the_answer_has_the_engines() -> None:
    with trio.fail_after(GUARD_S):
        told, _ = await serve(PLAIN, ASKED, response(b"x", "text/odd"))
        assert told.headers[b"content-type"] == b"text/odd"


async def test_the_beginning_is_with_the_client_before_the_end_has_come() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    with trio.fail_after(GUARD_S):
        async with engine(head, b"4\r\nlast\r\n0\r\n\r\n", held=True) as (server, pool):
            told = Told()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(RELAYED.serve, ASKED, pool, told)
                await told.sent.wait()
                assert told.body == b"first"
                signs = told.signs
                server.go.set()
            assert told.body == b"firstlast"
            assert told.signs > signs > 0


async def test_a_document_is_converted_as_a_whole() -> None:
    with trio.fail_after(GUARD_S):
        told, _ = await serve(TURNED, ASKED, response(b"abc"))
        assert (told.body, told.headers[b"content-type"]) == (b"cba", b"text/plain")


async def test_a_document_has_a_bound_and_sound_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOCUMENT_MAX", 1000)
    with trio.fail_after(GUARD_S):
        assert (await serve(TURNED, ASKED, response(b"x" * 1000)))[0].body == b"x" * 1000
        with pytest.RaisesGroup(AnswerTooLarge):
            await serve(TURNED, ASKED, response(b"x" * 1001))
        assert len((await serve(RELAYED, ASKED, response(b"x" * 100_000)))[0].body) == 100_000


@pytest.mark.parametrize("adapter", [RELAYED, TURNED], ids=["relayed", "converted"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(s, RequestUnprocessable) for s in (400, 413, 415, 422)]
    + [(s, EngineError) for s in (302, 401, 404, 429, 500, 503)],
)
async def test_a_refusal_is_told_with_the_engines_words(
    adapter: Translated, status: int, kind: type[SlotdError]
) -> None:
    with trio.fail_after(GUARD_S):
        words = b"  no such voice  " + b"." * 5000
        with pytest.RaisesGroup(kind) as caught:
            await serve(adapter, ASKED, response(words, "text/plain", status))
        [error] = caught.value.exceptions
        assert isinstance(error, SlotdError)
        assert f"answered {status}: no such voice" in error.message
        assert error.details == {"status": status}
        assert len(error.message) < module.WORDS_MAX + 100


async def test_a_request_without_a_meaning_does_not_reach_the_engine() -> None:
    def refuse(asked: Call) -> Ask:
        raise RequestUnprocessable("no")

    with trio.fail_after(GUARD_S):
        async with engine(response(b"")) as (server, pool):
            with pytest.raises(RequestUnprocessable):
                await Translated(refuse).serve(ASKED, pool, Told())
            assert server.requests == []


async def test_an_engine_that_is_lost_is_told_as_the_wire_tells_it() -> None:
    with trio.fail_after(GUARD_S):
        cut = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
        for adapter in (RELAYED, TURNED):
            with pytest.RaisesGroup(UpstreamBroken):
                await serve(adapter, ASKED, cut)
        async with engine(b"") as (_, pool):
            pass
        gone = Http1Pool(*pool.address)
        with pytest.raises(ConnectFailed):
            await RELAYED.serve(ASKED, gone, Told())
        gone.close()


async def test_a_client_that_leaves_ends_the_connection_to_the_engine() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
    with trio.fail_after(GUARD_S):
        async with engine(head, b"", held=True) as (server, pool):
            told = Told()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(RELAYED.serve, ASKED, pool, told)
                await told.sent.wait()
                nursery.cancel_scope.cancel()
            await server.left.wait()
            assert pool.in_use == 0


# --- which server speaks what ------------------------------------------------------------------


def test_the_table_of_apis() -> None:
    table = {name: (sorted(api.adapters), api.health_path, api.lists_models) for name, api in APIS.items()}
    assert table == {
        "openai": ([], "/health", True),
        "piper": (["/v1/audio/speech"], "/voices", False),
        "whisper.cpp": (["/v1/audio/transcriptions", "/v1/audio/translations"], "/health", False),
        "tei": (["/v1/rerank"], "/health", False),
    }
