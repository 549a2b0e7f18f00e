"""The fake engine, seen from outside: a real process, real sockets, one test a knob."""

from __future__ import annotations

import base64
import binascii
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from slotd.testing.fake_asks import Refused, read_ask, read_form
from slotd.testing.fake_knobs import ENV, KnobError, Knobs, command, documented, parse_args, turned

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say  it\nagain"}]
CHAT = "/v1/chat/completions"
# Like llama.cpp, the engine closes after a stream though it says that it does
# not: a client that reuses connections races with that.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)

P = ParamSpec("P")


def guarded(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Nothing here may hang, whatever is broken."""

    @wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with trio.fail_after(15):
            await test(*args, **kwargs)

    return run


class Fake:
    """A running fake engine."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.url = ""
        self._log = b""
        self.client = httpx.AsyncClient(verify=False, trust_env=False, limits=LIMITS, timeout=10)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    async def line(self) -> str:
        """The next line of its standard output; "" at the end."""
        assert self.process.stdout is not None
        while b"\n" not in self._log:
            data = await self.process.stdout.receive_some()
            if not data:
                return ""
            self._log += data
        line, _, self._log = self._log.partition(b"\n")
        return line.decode()

    async def stderr(self) -> str:
        assert self.process.stderr is not None
        return b"".join([data async for data in self.process.stderr]).decode()

    async def listening(self) -> None:
        line = await self.line()
        assert line.startswith("fake engine listening on http://127.0.0.1:")
        self.url = line.split()[-1]

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(self.url + path)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.client.post(self.url + path, json=body, headers=headers)

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.post(CHAT, {"messages": MESSAGES, **body})

    async def text(self, **body: Any) -> str:
        answer = (await self.chat(**body)).json()
        text = answer["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text

    async def turn(self, **knobs: Any) -> httpx.Response:
        return await self.post("/fake/knobs", knobs)

    async def stats(self) -> dict[str, Any]:
        stats = (await self.get("/fake/stats")).json()
        assert isinstance(stats, dict)
        return stats

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until it holds: the engine tells nobody of its own accord."""
        stats = await self.stats()
        while not holds(stats):
            await trio.sleep(0.01)
            stats = await self.stats()
        return stats

    async def connect(self, body: dict[str, Any], path: str = CHAT) -> trio.SocketStream:
        """A connection of our own with a request already sent."""
        host, port = self.address
        stream = await trio.open_tcp_stream(host, port)
        data = json.dumps({"messages": MESSAGES, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: fake\r\nContent-Length: {len(data)}\r\n\r\n"
        await stream.send_all(head.encode() + data)
        return stream


async def everything(stream: trio.SocketStream) -> bytes:
    """All that comes until the connection ends, by a reset too."""
    data = b""
    try:
        async for piece in stream:
            data += piece
    except trio.BrokenResourceError:
        return data
    return data


async def after(stream: trio.SocketStream, marker: bytes) -> bytes:
    """Read until the marker has come."""
    data = b""
    while marker not in data:
        piece = await stream.receive_some()
        assert piece, f"ended before {marker!r}: {data!r}"
        data += piece
    return data


def events(body: str) -> list[Any]:
    """The JSON of each event but the last word of OpenAI's streams."""
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


class Launch(Protocol):
    async def __call__(
        self, *, up: bool = True, environ: dict[str, str] | None = None, **knobs: Any
    ) -> Fake: ...


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    started: list[Fake] = []

    async def start(*, up: bool = True, environ: dict[str, str] | None = None, **knobs: Any) -> Fake:
        process = await trio.lowlevel.open_process(
            command(Knobs(**knobs), port="0"),
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        fake = Fake(process)
        started.append(fake)
        if up:
            await fake.listening()
        return fake

    yield start
    for fake in started:
        if fake.process.returncode is None:
            fake.process.kill()
        with trio.fail_after(5):
            await fake.process.wait()
        await fake.client.aclose()
        assert fake.process.stdout is not None
        assert fake.process.stderr is not None
        await fake.process.stdout.aclose()
        await fake.process.stderr.aclose()


# --- knobs as data ---------------------------------------------------------------


def test_a_command_line_says_the_same_as_its_knobs() -> None:
    knobs = Knobs(models=("a", "b"), echo=True, token_delay_s=0.5, crash_after_tokens=0, last_words="{} =x")
    argv = command(knobs)
    assert argv[:5] == [sys.executable, "-m", "slotd.testing.fake_engine", "--port", "{port}"]
    assert parse_args(["--port=0", *argv[5:]], {}) == knobs
    assert command(Knobs(), port="7")[3:] == ["--port", "7"]
    assert parse_args(command(Knobs(models=()))[5:], {}).models == ()
    with pytest.raises(KnobError, match="tokens"):
        command(Knobs(tokens=-1))


def test_flags_beat_json_beats_the_environment() -> None:
    environ = {ENV: '{"tokens": 1, "parallel": 1, "health_status": 201}'}
    flags = ["--tokens", "3", "--knobs", '{"tokens": 2, "parallel": 2}']
    knobs = parse_args(flags, environ)
    assert (knobs.tokens, knobs.parallel, knobs.health_status) == (3, 2, 201)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tokns", "3"], "did you mean 'tokens'"),
        (["--tokens"], "needs a value"),
        (["--tokens", "many"], "many"),
        (["--garbage", "noise"], "noise"),
        (["--knobs", "["], "--knobs"),
        (["tokens"], "not a flag"),
    ],
)
def test_a_bad_flag_is_explained(flags: list[str], words: str) -> None:
    with pytest.raises(KnobError, match=words):
        parse_args(flags, {})


def test_what_acts_at_the_start_cannot_be_turned_later() -> None:
    assert turned(Knobs(), {"tokens": 2}, running=True).tokens == 2
    with pytest.raises(KnobError, match="at the start only"):
        turned(Knobs(), {"memory_mb": 2}, running=True)


def test_every_knob_is_documented() -> None:
    assert documented().count("\n  --") == len(Knobs.__slots__) - 1


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "messages",
        "system",
        "input",
        "prompt",
        "content",
        "max_tokens",
        "stream",
        "stream_options",
        "instructions",
    ]
)


@given(
    st.sampled_from([CHAT, "/v1/completions", "/v1/messages", "/v1/responses", "/infill"]),
    st.dictionaries(FIELDS, JSONISH | st.lists(st.fixed_dictionaries({"content": JSONISH}), max_size=2)),
)
def test_any_document_is_read_or_refused(path: str, body: dict[str, Any]) -> None:
    with suppress(Refused):
        ask = read_ask(path, body)
        assert "".join(ask.words(tokens=9, echo=True)) == ask.last or ask.limit is not None


@given(st.binary(max_size=200))
def test_any_form_is_read_or_refused(data: bytes) -> None:
    with suppress(Refused):
        read_form("multipart/form-data; boundary=x", data)


# --- the API ---------------------------------------------------------------------


@guarded
async def test_chat(launch: Launch) -> None:
    fake = await launch(models=("m",), tokens=3)
    answer = (await fake.chat(model="other")).json()
    assert answer["choices"] == [
        {
            "finish_reason": "stop",
            "index": 0,
            "message": {"role": "assistant", "content": "word0 word1 word2"},
        }
    ]
    assert answer["model"] == "m"
    assert answer["usage"] | {"prompt_tokens_details": 0} == {
        "completion_tokens": 3,
        "prompt_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": 0,
    }
    assert answer["timings"]["predicted_n"] == 3
    cut = (await fake.chat(max_tokens=2)).json()
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 2)
    exact = (await fake.chat(max_tokens=5, ignore_eos=True)).json()
    assert exact["usage"]["completion_tokens"] == 5


@guarded
async def test_chat_stream(launch: Launch) -> None:
    fake = await launch(tokens=2)
    answer = await fake.chat(stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.endswith("data: [DONE]\n\n")
    chunks = events(answer.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": None}, {"content": "word0"}, {"content": " word1"}, {}]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 7
    assert len({chunk["id"] for chunk in chunks}) == 1
    plain = events((await fake.chat(stream=True)).text)
    assert len(plain) == 4
    assert all("usage" not in chunk for chunk in plain)


@guarded
async def test_other_text_endpoints(launch: Launch) -> None:
    fake = await launch(tokens=2)
    text = (await fake.post("/v1/completions", {"prompt": "a b"})).json()
    assert (text["choices"][0]["text"], text["usage"]["prompt_tokens"]) == ("word0 word1", 2)
    chunks = events((await fake.post("/v1/completions", {"prompt": "a", "stream": True})).text)
    assert [c["choices"][0]["text"] for c in chunks] == ["word0", " word1", ""]
    assert chunks[-1]["usage"]["completion_tokens"] == 2

    body: dict[str, Any] = {"system": "be brief", "messages": MESSAGES[1:], "max_tokens": 1}
    message = (await fake.post("/v1/messages", body)).json()
    assert message["content"] == [{"type": "text", "text": "word0"}]
    assert (message["stop_reason"], message["usage"]["input_tokens"]) == ("max_tokens", 5)
    kinds = [e["type"] for e in events((await fake.post("/v1/messages", body | {"stream": True})).text)]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]

    response = (await fake.post("/v1/responses", {"input": "hi"})).json()
    assert response["output"][0]["content"][0]["text"] == "word0 word1"
    told = events((await fake.post("/v1/responses", {"input": "hi", "stream": True})).text)
    assert [e["delta"] for e in told if e["type"] == "response.output_text.delta"] == ["word0", " word1"]
    assert told[-1]["response"]["usage"]["output_tokens"] == 2

    infill = (await fake.post("/infill", {"input_prefix": "a", "input_suffix": "b"})).json()
    assert infill["content"] == "word0 word1"


@guarded
async def test_endpoints_without_text(launch: Launch) -> None:
    fake = await launch()
    data = (await fake.post("/v1/embeddings", {"input": ["a", "b", "a"]})).json()["data"]
    vectors = [item["embedding"] for item in data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1)
    packed = await fake.post("/v1/embeddings", {"input": "a", "encoding_format": "base64"})
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(vectors[0])

    ranked = await fake.post("/v1/rerank", {"query": "red fox", "documents": ["x", "a red fox"], "top_n": 1})
    assert ranked.json()["results"] == [{"index": 1, "relevance_score": 1.0}]

    speech = await fake.post("/v1/audio/speech", {"input": "two words"})
    assert speech.headers["content-type"] == "audio/wav"
    assert speech.content.startswith(b"RIFF")
    assert speech.content.endswith(bytes(range(256)) * 2)

    audio = b"\r\n--\0\xff" * 1000
    heard = await fake.client.post(
        fake.url + "/v1/audio/transcriptions", data={"model": "w"}, files={"file": ("a b.wav", audio)}
    )
    assert heard.json()["file"] == {"filename": "a b.wav", "bytes": len(audio)}
    assert heard.json()["model"] == "w"

    image = (await fake.post("/v1/images/generations", {"prompt": "x", "n": 2})).json()["data"]
    assert len(image) == 2
    assert binascii.a2b_base64(image[0]["b64_json"]).startswith(b"\x89PNG\r\n")

    tokens = (await fake.post("/tokenize", {"content": "a b"})).json()["tokens"]
    assert len(tokens) == 2
    assert (await fake.post("/v1/messages/count_tokens", {"messages": MESSAGES})).json() == {
        "input_tokens": 5
    }
    assert (await fake.get("/props")).json()["total_slots"] == 4


@guarded
async def test_refusals_have_the_engines_shape(launch: Launch) -> None:
    fake = await launch(models=("m",))
    missing = await fake.post(CHAT, {})
    assert (missing.status_code, missing.json()["error"]["type"]) == (400, "invalid_request_error")
    assert (await fake.client.post(fake.url + CHAT, content=b"{")).status_code == 400
    assert (await fake.get("/nowhere")).json()["error"]["code"] == 404
    assert (await fake.chat(model="x")).status_code == 200
    await fake.turn(strict_model=True)
    assert (await fake.chat(model="x")).status_code == 404
    assert (await fake.chat(model="m")).status_code == 200
    host, port = fake.address
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(b"what is this\r\n\r\n")
        assert (await everything(stream)).startswith(b"HTTP/1.1 400 ")


@guarded
async def test_keep_alive_and_pipelining(launch: Launch) -> None:
    fake = await launch()
    host, port = fake.address
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\n\r\n" * 2)
        both = b""
        while both.count(b'{"status":"ok"}') < 2:
            both += await stream.receive_some()
        await stream.send_all(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert b"Connection: close" in await everything(stream)


@guarded
async def test_stats_tell_of_requests(launch: Launch) -> None:
    fake = await launch(tokens=2)
    await fake.post(CHAT, {"messages": MESSAGES, "model": "m"}, authorization="Bearer k")
    stats = await fake.stats()
    assert stats["pid"] == fake.process.pid
    assert (stats["started"], stats["finished"], stats["active"], stats["tokens_out"]) == (1, 1, 0, 2)
    [told] = stats["requests"]
    assert (told["path"], told["model"], told["outcome"], told["status"]) == (CHAT, "m", "finished", 200)
    assert told["headers"]["authorization"] == "Bearer k"


# --- knobs: start and load -------------------------------------------------------


@guarded
async def test_models_may_be_none(launch: Launch) -> None:
    fake = await launch(models=("a", "b"))
    listed = (await fake.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["a", "b"]
    await fake.turn(models=[])
    assert (await fake.get("/v1/models")).json()["data"] == []


@guarded
async def test_knobs_from_the_environment(launch: Launch) -> None:
    fake = await launch(environ={ENV: '{"tokens": 1}'})
    assert await fake.text() == "word0"


@guarded
async def test_bad_knobs_are_usage_errors(launch: Launch) -> None:
    fake = await launch(up=False, environ={ENV: '{"tokns": 1}'})
    assert "did you mean 'tokens'" in await fake.stderr()
    assert await fake.process.wait() == 2


@guarded
async def test_delays_before_the_port_and_before_the_model(launch: Launch) -> None:
    fake = await launch(up=False, startup_delay_s=0.3, load_delay_s=0.3, stderr="here")
    assert fake.process.stderr is not None
    assert await fake.process.stderr.receive_some() == b"here\n"
    began = trio.current_time()
    await fake.listening()
    opened = trio.current_time()
    assert opened - began >= 0.25
    for path in ("/health", "/v1/models"):
        loading = await fake.get(path)
        assert loading.status_code == 503
        assert loading.json() == {
            "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        }
    assert (await fake.get("/fake/stats")).status_code == 200
    assert await fake.line() == "model loaded"
    assert trio.current_time() - opened >= 0.2
    assert (await fake.get("/health")).json() == {"status": "ok"}


@guarded
async def test_memory_is_touched_and_kept(launch: Launch) -> None:
    fake = await launch(memory_mb=100)
    assert await fake.line() == "model loaded"
    status = await trio.Path(f"/proc/{fake.process.pid}/status").read_text()
    resident_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident_kb > 100 * 1024


@pytest.mark.parametrize("setsid", [False, True])
@guarded
async def test_a_grandchild_outlives_the_engine_and_holds_its_pipes(launch: Launch, setsid: bool) -> None:
    fake = await launch(up=False, fork_grandchild=True, grandchild_setsid=setsid)
    line = await fake.line()
    grandchild = int(line.removeprefix("grandchild pid "))
    handle = os.pidfd_open(grandchild)
    try:
        await fake.listening()
        assert await fake.line() == "model loaded"
        assert (os.getpgid(grandchild) == os.getpgid(fake.process.pid)) is not setsid
        fake.process.kill()
        await fake.process.wait()
        signal.pidfd_send_signal(handle, signal.SIGTERM)  # ignored
        with trio.move_on_after(0.1) as pipe_is_held:
            await fake.line()
        assert pipe_is_held.cancelled_caught
    finally:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    assert await fake.line() == ""


# --- knobs: answers --------------------------------------------------------------


@guarded
async def test_echo(launch: Launch) -> None:
    fake = await launch(echo=True, tokens=1)
    assert await fake.text() == MESSAGES[1]["content"]
    assert await fake.text(max_tokens=2) == "say  it"


@guarded
async def test_pace(launch: Launch) -> None:
    fake = await launch(tokens=5, first_token_delay_s=0.2, token_delay_s=0.05)
    stream = await fake.connect({"stream": True})
    began = trio.current_time()
    async with stream:
        await after(stream, b"word0")
        assert trio.current_time() - began >= 0.19
        await after(stream, b"word4")
        assert trio.current_time() - began >= 0.39
    await fake.turn(first_token_delay_s=0, token_delay_s=0, tokens_per_s=20)
    began = trio.current_time()
    await fake.chat()
    assert trio.current_time() - began >= 0.19


@guarded
async def test_requests_queue_inside(launch: Launch) -> None:
    fake = await launch(parallel=1, tokens=2, hang_after_tokens=1)
    async with await fake.connect({"stream": True}) as first, await fake.connect({"stream": True}) as second:
        await fake.until(lambda s: s["processing"] == 1 and s["queued"] == 1)
        assert [slot["is_processing"] for slot in (await fake.get("/slots")).json()] == [True]
        metrics = (await fake.get("/metrics")).text
        assert "llamacpp:requests_processing 1\n" in metrics
        assert "llamacpp:requests_deferred 1\n" in metrics
        await fake.turn(parallel=2)
        await fake.until(lambda s: s["processing"] == 2)
        assert [slot["is_processing"] for slot in (await fake.get("/slots")).json()] == [True, True]
        await fake.turn(hang_after_tokens=None)
        for stream in (first, second):
            assert b"[DONE]" in await everything(stream)
    assert [slot["is_processing"] for slot in (await fake.get("/slots")).json()] == [False, False]


@guarded
async def test_the_connection_after_a_stream(launch: Launch) -> None:
    fake = await launch(tokens=1)
    async with await fake.connect({"stream": True}) as stream:
        answer = await everything(stream)
    assert answer.endswith(b"0\r\n\r\n")
    assert b"Keep-Alive: timeout=5, max=100\r\n" in answer
    assert b"Connection: close" not in answer
    await fake.turn(close_after_stream=False)
    async with await fake.connect({"stream": True}) as stream:
        await after(stream, b"\r\n0\r\n\r\n")
        await stream.send_all(b"GET /health HTTP/1.1\r\n\r\n")
        await after(stream, b'{"status":"ok"}')


@pytest.mark.parametrize("leave", ["close", "half-close", "reset"])
@guarded
async def test_a_stream_stops_when_its_client_leaves(launch: Launch, leave: str) -> None:
    fake = await launch(tokens=100_000, token_delay_s=0.005)
    stream = await fake.connect({"stream": True})
    await after(stream, b"word1")
    if leave == "half-close":
        await stream.send_eof()
    else:
        if leave == "reset":
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
    stats = await fake.until(lambda s: s["active"] == 0)
    await stream.aclose()
    assert (stats["cancelled"], stats["finished"]) == (1, 0)
    assert stats["tokens_out"] < 1000


@guarded
async def test_a_nonstreaming_request_runs_on_unless_told_otherwise(launch: Launch) -> None:
    fake = await launch(tokens=3, hang_after_tokens=1)
    gone = await fake.connect({})
    await fake.until(lambda s: s["tokens_out"] == 1)
    await gone.aclose()
    await fake.turn(cancel_nonstream=True)  # for those that come from now on
    gone = await fake.connect({})
    await fake.until(lambda s: s["tokens_out"] == 2)
    await gone.aclose()
    stats = await fake.until(lambda s: s["cancelled"] == 1)
    assert stats["active"] == 1
    await fake.turn(hang_after_tokens=None)
    stats = await fake.until(lambda s: s["active"] == 0)
    assert [(r["outcome"], r["tokens"], r["client_gone"]) for r in stats["requests"]] == [
        ("finished", 3, True),
        ("cancelled", 1, True),
    ]


# --- knobs: deaths ---------------------------------------------------------------


@pytest.mark.parametrize("code", [3, -signal.SIGKILL, -signal.SIGSEGV])
@guarded
async def test_crash_mid_stream(launch: Launch, code: int) -> None:
    fake = await launch(crash_after_tokens=2, exit_code=code, last_words="CUDA error")
    async with await fake.connect({"stream": True}) as stream:
        answer = await everything(stream)
    assert b"word1" in answer
    assert b"word2" not in answer
    assert await fake.process.wait() == code
    assert await fake.stderr() == "CUDA error\n"


@guarded
async def test_crash_before_the_first_byte(launch: Launch) -> None:
    fake = await launch(crash_after_tokens=0)
    async with await fake.connect({"stream": True}) as stream:
        assert await everything(stream) == b""
    assert await fake.process.wait() == 1


@guarded
async def test_crash_at_start(launch: Launch) -> None:
    fake = await launch(up=False, crash_at_start=True, exit_code=7, stderr="error: bad magic")
    assert await fake.line() == ""
    assert await fake.stderr() == "error: bad magic\n"
    assert await fake.process.wait() == 7


@guarded
async def test_crash_after_a_time_set_at_the_start_or_later(launch: Launch) -> None:
    early = await launch(crash_after_s=0.1)
    assert await early.process.wait() == 1
    late = await launch()
    await late.turn(crash_after_s=0.0)
    assert await late.process.wait() == 1


@guarded
async def test_crash_once(launch: Launch, tmp_path: Path) -> None:
    marker = tmp_path / "crashed"
    first = await launch(crash_after_tokens=1, crash_once=str(marker))
    async with await first.connect({"stream": True}) as stream:
        assert b"[DONE]" not in await everything(stream)
    assert await first.process.wait() == 1
    assert marker.exists()
    second = await launch(crash_after_tokens=1, crash_once=str(marker), tokens=2)
    assert await second.text() == "word0 word1"


@guarded
async def test_crash_on_request(launch: Launch) -> None:
    fake = await launch(exit_code=4)
    with pytest.raises(httpx.TransportError):
        await fake.post("/fake/crash", {"exit_code": 5})
    assert await fake.process.wait() == 5


@pytest.mark.parametrize("code", [0, 143, -signal.SIGTERM])
@guarded
async def test_sigterm_ends_it_at_once_even_while_it_streams(launch: Launch, code: int) -> None:
    fake = await launch(sigterm_exit_code=code, hang_after_tokens=1)
    async with await fake.connect({"stream": True}) as stream:
        await after(stream, b"word0")
        fake.process.terminate()
        assert await fake.process.wait() == code
        assert b"[DONE]" not in await everything(stream)


@guarded
async def test_sigterm_refused(launch: Launch) -> None:
    fake = await launch(refuse_sigterm=True)
    assert await fake.line() == "model loaded"
    fake.process.terminate()
    assert await fake.line() == "ignoring SIGTERM"
    assert (await fake.get("/health")).status_code == 200
    await fake.turn(refuse_sigterm=False)
    fake.process.terminate()
    assert await fake.process.wait() == 0


@pytest.mark.parametrize("second", [False, True])
@guarded
async def test_sigterm_drains_until_a_second_one(launch: Launch, second: bool) -> None:
    fake = await launch(sigterm_drains=True, tokens=2, hang_after_tokens=1, sigterm_exit_code=143)
    assert await fake.line() == "model loaded"
    async with await fake.connect({"stream": True}) as stream:
        await after(stream, b"word0")
        fake.process.terminate()
        if second:
            assert await fake.line() == "SIGTERM: waiting for the last request"
            fake.process.terminate()
        else:
            await fake.turn(hang_after_tokens=None)
        assert (b"[DONE]" in await everything(stream)) is not second
    assert await fake.process.wait() == 143


# --- knobs: silence --------------------------------------------------------------


@guarded
async def test_hangs_keep_the_connection_until_they_are_cleared(launch: Launch) -> None:
    fake = await launch(tokens=3, hang_after_tokens=2, hang_health=True)
    health_done = trio.Event()

    async def health() -> None:
        assert (await fake.get("/health")).status_code == 200
        health_done.set()

    async with trio.open_nursery() as nursery, await fake.connect({"stream": True}) as stream:
        nursery.start_soon(health)
        await after(stream, b"word1")
        with trio.move_on_after(0.1) as silent:
            await stream.receive_some()
        assert silent.cancelled_caught
        assert not health_done.is_set()
        await fake.turn(hang_after_tokens=None, hang_health=False)
        await after(stream, b"[DONE]")
    assert health_done.is_set()


@guarded
async def test_requests_that_are_never_answered(launch: Launch) -> None:
    fake = await launch(hang_requests=True)
    async with await fake.connect({"input": "x"}, "/v1/embeddings") as stream:
        await fake.until(lambda s: s["processing"] == 1)
        assert (await fake.get("/health")).status_code == 200
        with trio.move_on_after(0.1) as silent:
            await stream.receive_some()
        assert silent.cancelled_caught
        await fake.turn(hang_requests=False)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


@guarded
async def test_health_may_be_slow_or_bad(launch: Launch) -> None:
    fake = await launch(slow_health_s=0.2, health_status=500)
    began = trio.current_time()
    assert (await fake.get("/health")).status_code == 500
    assert trio.current_time() - began >= 0.19


# --- knobs: wrong answers --------------------------------------------------------


@guarded
async def test_errors_as_told(launch: Launch) -> None:
    fake = await launch(error_status=503)
    for path in (CHAT, "/v1/embeddings"):
        answer = await fake.post(path, {"messages": MESSAGES, "input": "x", "stream": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, 503)
    await fake.turn(error_status=418, error_body='{"short": "stout"}')
    answer = await fake.chat()
    assert (answer.status_code, answer.text) == (418, '{"short": "stout"}')
    assert (await fake.stats())["failed"] == 3


@guarded
async def test_garbage(launch: Launch) -> None:
    fake = await launch(garbage="text", tokens=3)
    assert await fake.text() == "@@@@" * 3
    await fake.turn(garbage="empty")
    assert await fake.text() == ""
    assert [c["choices"][0]["delta"].get("content") for c in events((await fake.chat(stream=True)).text)] == [
        None,
        None,
    ]
    await fake.turn(garbage="sse")
    for stream in (False, True):
        answer = await fake.chat(stream=stream)
        assert answer.status_code == 200
        with pytest.raises(json.JSONDecodeError):
            events(answer.text) if stream else answer.json()
    await fake.turn(garbage="http")
    with pytest.raises(httpx.RemoteProtocolError):
        await fake.chat()


@guarded
async def test_an_oversized_answer(launch: Launch) -> None:
    fake = await launch(oversized_response_mb=3)
    assert len((await fake.chat()).content) > 3 << 20
    biggest = max(events((await fake.chat(stream=True)).text), key=lambda e: len(str(e)))
    assert len(biggest["choices"][0]["delta"]["content"]) == 3 << 20


@guarded
async def test_connections_that_are_cut(launch: Launch) -> None:
    fake = await launch(cut_after_tokens=2)
    async with await fake.connect({"stream": True}) as stream:
        answer = await everything(stream)
    assert b"word1" in answer
    assert b"word2" not in answer
    async with await fake.connect({}) as stream:
        assert await everything(stream) == b""
    await fake.turn(cut_after_tokens=None, close_without_terminator=True)
    async with await fake.connect({"stream": True}) as stream:
        answer = await everything(stream)
    assert answer.endswith(b"data: [DONE]\n\n\r\n")
    stats = await fake.stats()
    assert (stats["failed"], stats["active"]) == (3, 0)


@guarded
async def test_a_flood_of_log_lines(launch: Launch) -> None:
    fake = await launch(log_flood=2000)
    lines = [await fake.line() for _ in range(300)]
    assert sum("nobody wants to read" in line for line in lines) >= 299
    await fake.turn(log_flood=0)
    assert (await fake.get("/health")).status_code == 200


@guarded
async def test_a_log_that_nobody_holds_any_more_does_not_end_it(launch: Launch) -> None:
    fake = await launch(log_flood=1000)
    assert fake.process.stdout is not None
    await fake.process.stdout.aclose()
    await fake.turn(tokens=1)
    assert await fake.text() == "word0"
    assert fake.process.poll() is None


@guarded
async def test_turning_knobs_while_it_runs(launch: Launch) -> None:
    fake = await launch()
    turned_to = await fake.turn(tokens=2)
    assert turned_to.json()["tokens"] == 2
    refused = await fake.turn(tokns=3)
    assert refused.status_code == 400
    assert "did you mean 'tokens'" in refused.json()["error"]["message"]
    assert (await fake.get("/fake/knobs")).json()["tokens"] == 2
    assert await fake.text() == "word0 word1"
