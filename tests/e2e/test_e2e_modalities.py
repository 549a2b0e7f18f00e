"""Every modality through the whole of slotd: fake engines, real sockets.

With real engines: ``test_e2e_real_modalities``.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

import pytest
import trio
from e2e_tools import CHAT, GUARD_S, Scripted, Start, ask, chunk, client, code, dial, eventually, scripted

from slotd.testing import Knobs, fake_slot

SPEECH, STT = "/v1/audio/speech", "/v1/audio/transcriptions"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n"
EVERY_BYTE = bytes(range(256))
FILE = {"file": ("a.wav", EVERY_BYTE, "audio/wav")}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def typed(type: str, **settings: Any) -> dict[str, Any]:
    return fake_slot(Knobs(models=(f"{type}-model",)), type=type, default=True, **settings)


def reply(body: bytes, kind: str = "application/json", status: int = 200) -> Any:
    """A script that answers everything with this."""

    async def script(stream: trio.SocketStream, request: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)

    return script


def got(engine: Scripted) -> tuple[str, bytes]:
    """First line and body of the last request that the engine got."""
    head, _, body = engine.requests[-1].partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


# --- every endpoint finds its slot --------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]
ASKS: list[tuple[str, str, dict[str, Any], str]] = [
    ("llm", "/v1/chat/completions", {"model": "llm", "messages": MESSAGES}, "choices"),
    ("llm", "/v1/completions", {"model": "llm", "prompt": "hi"}, "choices"),
    ("llm", "/v1/responses", {"model": "llm", "input": "hi"}, "output"),
    ("llm", "/v1/messages", {"model": "llm", "max_tokens": 4, "messages": MESSAGES}, "content"),
    ("llm", "/v1/messages/count_tokens", {"model": "llm", "messages": MESSAGES}, "input_tokens"),
    ("llm", "/infill", {"input_prefix": "a", "input_suffix": "b"}, "content"),
    ("llm", "/tokenize", {"content": "hi"}, "tokens"),
    ("llm", "/detokenize", {"tokens": [1, 2]}, "content"),
    ("llm", "/apply-template", {"messages": MESSAGES}, "prompt"),
    ("embedding", "/v1/embeddings", {"model": "text-embedding-3-small", "input": ["a"]}, "data"),
    ("reranking", "/v1/rerank", {"model": "rerank-english-v3", "query": "a", "documents": ["a"]}, "results"),
    ("image", "/v1/images/generations", {"model": "dall-e-3", "prompt": "a"}, "data"),
]


async def test_every_endpoint_is_served_by_the_slot_of_its_type(slotd_harness: Start) -> None:
    """Also under names that only a client's library knows; the engine is asked at the same path."""
    types = sorted({type for type, *_ in ASKS} | {"tts", "transcription"})
    with trio.fail_after(GUARD_S):
        async with slotd_harness({t: typed(t) for t in types}) as slotd, client(slotd) as http:
            for type, path, body, field in ASKS:
                answer = await http.post(path, json=body)
                assert answer.status_code == 200, (path, answer.text)
                assert field in answer.json(), path
                assert answer.headers["x-slotd-route"].startswith(f"slot:{type};"), path
                latest = (await slotd.fake(type).stats())["requests"][-1]
                assert latest["path"] == path
            answer = await http.post(SPEECH, json={"model": "tts-1", "input": "hi", "voice": "alloy"})
            assert (answer.headers["content-type"], answer.content[:4]) == ("audio/wav", b"RIFF")
            for path in (STT, "/v1/audio/translations"):
                answer = await http.post(path, files=FILE, data={"model": "whisper-1"})
                assert answer.json()["file"] == {"filename": "a.wav", "bytes": 256}
                assert (await slotd.fake("transcription").stats())["requests"][-1]["path"] == path
            answer = await http.post("/v1/images/edits", files=FILE, data={"prompt": "red"})
            assert answer.json()["data"][0]["revised_prompt"] == "red"


async def test_all_spellings_of_rerank_are_one_to_the_engine(slotd_harness: Start) -> None:
    body = {"query": "red cat", "documents": ["a blue dog", "the red cat", "a red car"], "top_n": 2}
    spellings = ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v1/rerankings"]
    with trio.fail_after(GUARD_S):
        async with slotd_harness({"rank": typed("reranking")}) as slotd, client(slotd) as http:
            answers = [(await http.post(path, json=body)).json() for path in spellings]
            assert [row["index"] for row in answers[0]["results"]] == [1, 2]
            assert answers == [answers[0]] * len(spellings)
            stats = await slotd.fake("rank").stats()
            assert [r["path"] for r in stats["requests"]] == ["/v1/rerank"] * len(spellings)


# --- forms --------------------------------------------------------------------------------------


def form(sound: bytes, model: str) -> tuple[bytes, str]:
    """A form whose model comes last, and its content type."""
    head = b'--b0u\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    tail = b'\r\n--b0u\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--b0u--\r\n'
    return head + sound + tail % model.encode(), "multipart/form-data; boundary=b0u"


async def test_a_form_is_relayed_as_it_came_to_the_model_behind_its_sound(
    slotd_harness: Start, express: bool
) -> None:
    sound = hashlib.shake_256(b"sound").digest(6 << 20) + b"\r\n--b0 \r\n--b0rder"
    body, kind = form(sound, "second")
    slots = {"first": typed("transcription"), "second": fake_slot(type="transcription")}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots) as slotd, client(slotd) as http:
            answer = await http.post(STT, content=body, headers={"content-type": kind})
            assert answer.json()["model"] == "second"
            assert answer.json()["file"]["bytes"] == len(sound)
            [request] = (await slotd.fake("second").stats())["requests"]
            assert request["body_sha256"] == hashlib.sha256(body).hexdigest()
            assert request["headers"]["content-type"] == kind
            assert slotd.snapshot("first").starts == 0


async def test_of_a_form_beyond_the_bound_no_more_is_taken(slotd_harness: Start, express: bool) -> None:
    """Its length is told beforehand: refused at once. It is not: as soon as it is too much."""
    slots = {"stt": typed("transcription")}
    with trio.fail_after(GUARD_S):
        async with slotd_harness(slots, server={"max_body_mb": 1}) as slotd, client(slotd) as http:
            async with await dial(slotd) as wire:
                head = f"POST {STT} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
                await wire.stream.send_all(head.encode() + b"content-length: 900000000\r\n\r\n--b\r\n")
                assert (await wire.head()).status == 413
            sent = 0
            async with await dial(slotd) as wire:
                await wire.stream.send_all(head.encode() + b"transfer-encoding: chunked\r\n\r\n")

                async def upload() -> None:
                    nonlocal sent
                    try:
                        while True:
                            await wire.stream.send_all(chunk(b"x" * 65536))
                            sent += 65536
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return  # slotd takes no more

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(upload)
                    assert (await wire.head()).status == 413
                    nursery.cancel_scope.cancel()
            assert (1 << 20) - 65536 <= sent < 64 << 20, "what the kernel's buffers hold, no more"
            assert slotd.snapshot("stt").starts == 0
            fits, kind = form(b"x" * 900_000, "stt")
            assert (await http.post(STT, content=fits, headers={"content-type": kind})).status_code == 200


# --- sound is streamed --------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["openai", "piper"])
async def test_speech_is_with_the_client_while_it_is_spoken(
    slotd_harness: Start, express: bool, api: str
) -> None:
    heard = trio.Event()

    async def speak(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(CHUNKED.replace(b"text/html", b"audio/wav") + chunk(EVERY_BYTE))
        await heard.wait()
        await stream.send_all(chunk(b"\r\n\0the end") + chunk(b""))

    with trio.fail_after(GUARD_S):
        async with (
            scripted(speak) as engine,
            slotd_harness({"speak": engine.slot(type="tts", default=True, api=api)}) as slotd,
            await dial(slotd) as wire,
        ):
            await wire.post(SPEECH, {"model": "tts-1", "input": "hi"})
            head = await wire.head()
            assert (head.status, head.headers["content-type"]) == (200, "audio/wav")
            assert await wire.some() == EVERY_BYTE
            heard.set()
            assert await wire.rest() == b"\r\n\0the end"


@pytest.mark.parametrize("api", ["openai", "piper"])
async def test_who_stops_listening_ends_the_speech(slotd_harness: Start, express: bool, api: str) -> None:
    ended = trio.Event()

    async def speak(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(CHUNKED + chunk(EVERY_BYTE))
        while await stream.receive_some():
            pass
        ended.set()

    with trio.fail_after(GUARD_S):
        async with (
            scripted(speak) as engine,
            slotd_harness({"speak": engine.slot(type="tts", default=True, api=api)}) as slotd,
        ):
            async with await dial(slotd) as wire:
                await wire.post(SPEECH, {"model": "tts-1", "input": "hi"})
                await wire.head()
                await wire.until(EVERY_BYTE)
            await ended.wait()
            await eventually(lambda: slotd.snapshot("speak").leases == 0)


# --- servers that speak something else ------------------------------------------------------------


async def test_piper(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            scripted(reply(b"RIFF....", "text/html; charset=utf-8")) as engine,
            slotd_harness({"speak": engine.slot(type="tts", default=True, api="piper")}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(
                SPEECH, json={"model": "tts-1", "input": "hi", "voice": "joe", "speed": 2}
            )
            assert (answer.headers["content-type"], answer.content) == ("audio/wav", b"RIFF....")
            line, body = got(engine)
            assert line == "POST /synthesize HTTP/1.1"
            assert json.loads(body) == {"text": "hi", "voice": "joe", "length_scale": 0.5}
            refused = await http.post(
                SPEECH, json={"model": "tts-1", "input": "hi", "response_format": "mp3"}
            )
            assert (refused.status_code, code(refused)) == (422, "request.unprocessable")
            assert refused.json()["error"]["param"] == "response_format"
            assert len(engine.requests) == 1


async def test_whisper_cpp(slotd_harness: Start) -> None:
    body, kind = form(EVERY_BYTE, "whisper-1")
    with trio.fail_after(GUARD_S):
        async with (
            scripted(reply(b'{"text":" hello"}')) as engine,
            slotd_harness(
                {"listen": engine.slot(type="transcription", default=True, api="whisper.cpp")}
            ) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(STT, content=body, headers={"content-type": kind})
            assert answer.json() == {"text": " hello"}
            assert got(engine) == ("POST /inference HTTP/1.1", body)
            await http.post("/v1/audio/translations", content=body, headers={"content-type": kind})
            line, sent = got(engine)
            assert line == "POST /inference HTTP/1.1"
            assert b'name="translate"\r\n\r\ntrue\r\n' in sent


async def test_what_whisper_cpp_cannot_read_is_the_clients_to_mend(slotd_harness: Start) -> None:
    with trio.fail_after(GUARD_S):
        async with (
            scripted(reply(b"Invalid request", "text/plain", 400)) as engine,
            slotd_harness(
                {"listen": engine.slot(type="transcription", default=True, api="whisper.cpp")}
            ) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(STT, files=FILE, data={"model": "whisper-1"})
            assert (answer.status_code, code(answer)) == (422, "request.unprocessable")
            assert "answered 400: Invalid request" in answer.json()["error"]["message"]


async def test_text_embeddings_inference(slotd_harness: Start) -> None:
    ranks = b'[{"index":0,"score":0.1},{"index":1,"score":0.9}]'
    with trio.fail_after(GUARD_S):
        async with (
            scripted(reply(ranks)) as engine,
            slotd_harness({"rank": engine.slot(type="reranking", default=True, api="tei")}) as slotd,
            client(slotd) as http,
        ):
            for path in ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"):
                answer = await http.post(path, json={"query": "q", "documents": ["a", "b"], "top_n": 1})
                assert answer.json()["results"] == [{"index": 1, "relevance_score": 0.9}]
                line, body = got(engine)
                assert line == "POST /rerank HTTP/1.1"
                assert json.loads(body)["texts"] == ["a", "b"]


async def test_a_translated_request_whose_engine_is_lost_is_sent_again(slotd_harness: Start) -> None:
    async def once(stream: trio.SocketStream, request: bytes) -> None:
        if len(engine.requests) > 1:
            await reply(b"RIFF....")(stream, request)

    with trio.fail_after(GUARD_S):
        async with (
            scripted(partial(once)) as engine,
            slotd_harness({"speak": engine.slot(type="tts", default=True, api="piper")}) as slotd,
            client(slotd) as http,
        ):
            answer = await http.post(SPEECH, json={"model": "tts-1", "input": "hi"})
            assert (answer.status_code, answer.content) == (200, b"RIFF....")
            assert len(engine.requests) == 2
            assert (await http.get("/api/requests")).json()["recent"][0]["replays"] == 1


# --- what a model cannot read ---------------------------------------------------------------------


async def test_a_picture_for_a_model_that_reads_only_text(slotd_harness: Start, express: bool) -> None:
    """Refused with a way out, and without loading anything; whoever can see gets it as it came."""
    more = '[models.words]\nsource = "file:words.gguf"\n'
    words = {"type": "llm", "engine": "llama-cpp", "model": "words", "default": True}
    content = [{"type": "text", "text": "What is this?"}, PICTURE]
    picture = {"messages": [{"role": "user", "content": content}]}
    with trio.fail_after(GUARD_S):
        async with (
            slotd_harness({"words": words, "eyes": fake_slot(labels=["vision"])}, more=more) as slotd,
            client(slotd) as http,
        ):
            for stream in (False, True):
                answer = await http.post(CHAT, json={"model": "words", "stream": stream, **picture})
                assert (answer.status_code, code(answer)) == (422, "request.unprocessable")
                assert answer.json()["error"]["details"]["slots"] == ["eyes"]
            assert slotd.snapshot("words").starts == 0
            assert (await http.post(CHAT, json={"model": "eyes", **picture})).status_code == 200
            assert (await http.post(CHAT, json=ask("eyes"))).status_code == 200
