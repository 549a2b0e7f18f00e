"""The llama.cpp worker: its command line (pure), and the real engine behind it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from slotd.engine.llama_worker import FLAGS, UsageError, configure, parse

# --- the command line ------------------------------------------------------------


def given_values(*argv: str) -> dict[str, Any]:
    return {setting.flag.names[0]: setting.value for setting in parse(["-m", "x", *argv])}


def test_reads_llama_server_flags() -> None:
    got = given_values(
        *("--ctx-size", "4096", "-np", "2", "-ngl", "all", "--no-webui", "-fa", "off", "--pooling", "mean"),
        *("--alias", "a,b", "--lora-scaled", "l.gguf:0.5", "-ts", "3,1", "--seed", "-1", "--no_slots"),
    )
    assert got == {
        "--model": "x",
        "--ctx-size": 4096,
        "--parallel": 2,
        "--n-gpu-layers": -2,
        "--no-webui": False,
        "--flash-attn": "LLAMA_FLASH_ATTN_TYPE_DISABLED",
        "--pooling": "LLAMA_POOLING_TYPE_MEAN",
        "--alias": {"a", "b"},
        "--lora-scaled": [("l.gguf", 0.5)],
        "--tensor-split": [3.0, 1.0],
        "--seed": 2**32 - 1,
        "--no-slots": False,
    }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--ctxsize", "1"], r"unknown flag --ctxsize; did you mean --ctx-size\?"),
        (["--ctx-size=1"], "write --ctx-size 1 with a space"),
        (["--ctx-size", "many"], "expects a whole number, not 'many'"),
        (["--port", "70000"], "at most 65535"),
        (["-np", "0"], "at least 1"),
        (["--pooling", "max"], "one of none, mean, cls, last, rank"),
        (["--reasoning-format", "x"], "deepseek-legacy"),
        (["--ctx-size"], "needs a value"),
        (["stray"], "unexpected word 'stray'"),
        (["--chat-template-file", "/nonexistent"], "readable UTF-8 file"),
        (["--chat-template-kwargs", "[]"], "a JSON object"),
    ],
)
def test_says_what_is_wrong(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(["-m", "x", *argv])


def test_a_model_is_needed() -> None:
    with pytest.raises(UsageError, match="--model"):
        parse(["--port", "1"])


def test_a_template_is_read_from_its_file(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    assert given_values("--chat-template-file", str(template))["--chat-template-file"] == "{{ messages }}"


def test_every_spelling_belongs_to_one_flag() -> None:
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


@given(
    st.lists(
        st.text(max_size=8) | st.sampled_from([name for flag in FLAGS for name in flag.names]), max_size=6
    )
)
def test_any_command_line_is_read_or_refused(argv: list[str]) -> None:
    with contextlib.suppress(UsageError):
        parse(argv)


# --- onto the engine's parameters ------------------------------------------------

SAMPLES = {
    "--alias": "a",
    "--lora": "a.gguf,b.gguf",
    "--lora-scaled": "c.gguf:0.5",
    "--chat-template-kwargs": '{"enable_thinking": false}',
    "--flash-attn": "on",
    "--pooling": "cls",
    "--split-mode": "row",
    "--rope-scaling": "yarn",
    "--reasoning-format": "none",
    "--cache-type-k": "q8_0",
    "--cache-type-v": "q8_0",
    "--tensor-split": "1,2",
}


@pytest.mark.real_engine
def test_every_flag_reaches_the_engine(tmp_path: Path) -> None:
    """Each flag changes the parameters of the installed engine, and is accepted by it."""
    engine = pytest.importorskip("xllamacpp")
    template = tmp_path / "t.jinja"
    template.write_text("x")
    for flag in FLAGS:
        name = flag.names[0]
        sample = str(template) if name == "--chat-template-file" else SAMPLES.get(name, "7")
        configure(engine, parse(["-m", "x", name, *([sample] if flag.read else [])]))
    argv = ["-m", "M", "-a", "me", "--lora", "L", "--pooling", "cls", "-ts", "1,2", "-c", "99", "--no-mmap"]
    params = configure(engine, parse(argv))
    assert params.model.path == "M"
    assert params.model_alias == {"me"}
    assert [adapter.path for adapter in params.lora_adapters] == ["L"]
    assert params.pooling_type == engine.llama_pooling_type.LLAMA_POOLING_TYPE_CLS
    assert params.load_mode == engine.llama_load_mode.LLAMA_LOAD_MODE_NONE
    assert params.tensor_split[:3] == [1.0, 2.0, 0.0]
    assert params.n_ctx == 99
    assert params.hostnames == ["127.0.0.1"]
    assert configure(engine, parse(["-m", "x", "--embedding", "-ub", "64"])).n_batch == 64
    assert configure(engine, parse(["-m", "x", "--reranking"])).embedding


# --- the real engine ------------------------------------------------------------


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    url: str
    errors: Path

    def words(self) -> str:
        return self.errors.read_text(errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def worker(tmp_path: Path, argv: Sequence[str], port: int | None = None) -> Iterator[Worker]:
    port = port or free_port()
    errors = tmp_path / f"worker-{port}.err"
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "slotd.engine.llama_worker", "--port", str(port), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=sink,
        )
        try:
            yield Worker(process, f"http://127.0.0.1:{port}", errors)
        finally:
            process.kill()
            process.wait(10)


async def ended(process: subprocess.Popen[bytes]) -> int:
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait(1)


async def healths(engine: Worker, client: httpx.AsyncClient) -> list[int]:
    """The distinct answers of /health on the way to 200; 0 while nobody listens."""
    seen: list[int] = []
    with trio.fail_after(60):
        while seen[-1:] != [200]:
            assert engine.process.poll() is None, engine.words()
            try:
                status = (await client.get(f"{engine.url}/health")).status_code
            except httpx.TransportError:
                status = 0
            if seen[-1:] != [status]:
                seen.append(status)
            await trio.sleep(0.001)  # a turn of the poll; the event is the engine's answer
    return seen


@pytest.mark.real_engine
async def test_from_refused_over_loading_to_chat(tmp_path: Path, demo_model: Path) -> None:
    argv = [
        "-m",
        str(demo_model),
        "--alias",
        "smol",
        "-c",
        "512",
        "--cache-ram",
        "0",
        "--no-webui",
        "--metrics",
    ]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        with worker(tmp_path, argv) as engine:
            assert await healths(engine, client) == [0, 503, 200]
            models = (await client.get(f"{engine.url}/v1/models")).json()
            assert [model["id"] for model in models["data"]] == ["smol"]
            body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
            answer = await client.post(
                f"{engine.url}/v1/chat/completions", json=body, headers={"Origin": "https://page.example"}
            )
            assert answer.json()["model"] == "smol"
            assert answer.json()["choices"][0]["message"]["content"]
            assert "access-control-allow-origin" not in answer.headers
            assert (await client.get(f"{engine.url}/metrics")).status_code == 200
            assert (await client.get(engine.url)).status_code == 404  # no web page
            with trio.fail_after(2):
                engine.process.send_signal(signal.SIGTERM)
                assert await ended(engine.process) == -signal.SIGTERM
            assert "model loaded" in engine.words()


@pytest.mark.real_engine
async def test_embeddings(tmp_path: Path, demo_model: Path) -> None:
    argv = ["-m", str(demo_model), "--alias", "vectors", "--embedding", "--pooling", "mean", "-c", "512"]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        with worker(tmp_path, argv) as engine:
            await healths(engine, client)
            answer = (await client.post(f"{engine.url}/v1/embeddings", json={"input": ["cat", "dog"]})).json()
    assert answer["model"] == "vectors"
    assert [len(item["embedding"]) for item in answer["data"]] == [576, 576]


@pytest.mark.real_engine
async def test_what_the_engine_refuses(tmp_path: Path, demo_model: Path) -> None:
    corrupt = tmp_path / "corrupt.gguf"
    with open(demo_model, "rb") as whole:  # noqa: ASYNC230 # a test
        await trio.Path(corrupt).write_bytes(whole.read(100_000))
    with worker(tmp_path, ["-m", str(corrupt)]) as engine, trio.fail_after(2):
        assert await ended(engine.process) == 1
        assert "failed to load model" in engine.words()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with worker(tmp_path, ["-m", str(demo_model)], port) as engine, trio.fail_after(2):
            assert await ended(engine.process) == 1
            assert "couldn't bind" in engine.words()


async def test_a_wrong_flag_ends_it_before_the_engine_is_loaded(tmp_path: Path) -> None:
    with worker(tmp_path, ["--modell", "x"]) as engine, trio.fail_after(5):
        assert await ended(engine.process) == 2
        assert "did you mean --model?" in engine.words()


def test_it_imports_next_to_nothing() -> None:
    code = "import sys, json, slotd.engine.llama_worker; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=20)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & {"trio", "httpx", "pydantic", "typer", "asyncio", "xllamacpp"}
