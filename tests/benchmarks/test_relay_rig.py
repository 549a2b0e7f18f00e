"""The benchmarks' own tools tell the truth: the stub engine, the load generator, and what is made of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RIG = BENCHMARKS / "rig"


@pytest.fixture
def stub() -> Iterator[int]:
    """The port of a running stub engine."""
    argv = [sys.executable, str(RIG / "engine_stub.py"), "--catalog", "3"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.kill()


async def generate(port: int, **job: Any) -> dict[str, Any]:
    text = json.dumps({"host": "127.0.0.1", "port": port, "model": "stub", **job})
    done = await trio.run_process(
        [sys.executable, str(RIG / "load_gen.py")], stdin=text.encode(), capture_stdout=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("body_bytes", [0, 1 << 20])
async def test_a_closed_loop_counts_each_answer_once(stub: int, body_bytes: int) -> None:
    with trio.fail_after(30):
        found = await generate(
            stub, kind="closed", connections=4, requests=50, warm_s=0, body_bytes=body_bytes
        )
    # Those under way when the last one is answered may be counted too.
    assert 50 <= found["requests"] < 54
    assert found["answered_in_all"] == found["requests"]
    assert (found["refused"], found["broken"], found["reconnects"]) == (0, 0, 0)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


async def test_paced_streams_come_whole_and_at_their_pace(stub: int) -> None:
    with trio.fail_after(30):
        found = await generate(stub, kind="streams", connections=5, tokens=8, rate=50, seconds=20)
    assert (found["streams"], found["whole"], found["tokens"], found["unfinished"]) == (5, 5, 40, 0)
    assert 15 < found["gap_ms"]["p50"] < 60
    assert found["took_s"] >= 6 / 50


async def test_streams_at_full_speed_end_when_their_time_is_over(stub: int) -> None:
    with trio.fail_after(30):
        found = await generate(stub, kind="streams", connections=2, tokens=10_000_000, seconds=0.3)
    assert found["tokens"] > 1000
    assert (found["broken"], found["unfinished"], found["refused"]) == (0, 0, 0)
    assert 0.25 < found["took_s"] < 10


async def test_a_server_that_closes_is_asked_again() -> None:
    """Answers in pieces, a head that ends like a last chunk does, and the connection closed after each."""
    pieces = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n",
        b"2\r\n{}\r\n0\r\n",
        b"\r\n",
    )

    async def answer(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some(4096):
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.sleep(0.01)  # so that each comes by itself
                await stream.aclose()
                return
        except trio.BrokenResourceError:
            return

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            found = await generate(port, kind="closed", connections=1, requests=5, warm_s=0)
            nursery.cancel_scope.cancel()
    assert (found["requests"], found["broken"], found["refused"]) == (5, 0, 0)
    assert found["reconnects"] >= 4


async def run(script: str, *options: str) -> tuple[str, subprocess.CompletedProcess[bytes]]:
    argv = [sys.executable, str(BENCHMARKS / script), "--quick", *options]
    done: subprocess.CompletedProcess[bytes] = await trio.run_process(
        argv, capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done


async def test_relay_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    with trio.fail_after(110):
        options = [
            "--out",
            str(tmp_path),
            "--seconds",
            "0.3",
            "--only",
            "small JSON",
            "--only",
            "tokens/s, 1",
        ]
        shown, _ = await run("relay.py", *options)
    doc = json.loads((tmp_path / "relay.json").read_bytes())
    assert [t["name"] for t in doc["targets"]] == ["direct", "slotd", "slotd (Quart lane)", "Quart + httpx"]
    assert all(m["per_s"] > 0 and m["faults"] == 0 for m in doc["medians"])
    (bar,) = (b for b in doc["bars"] if b["what"].startswith("requests/s over Quart + httpx"))
    assert bar["value"] > 1
    assert "bars" in shown
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "relay.png").read_bytes().startswith(b"\x89PNG")


async def test_lifecycle_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    with trio.fail_after(110):
        await run("lifecycle.py", "--no-real", "--rounds", "1", "--out", str(tmp_path))
    doc = json.loads((tmp_path / "lifecycle.json").read_bytes())
    found = {(t["engine"], t["what"]): t["median"] for t in doc["times_ms"]}
    assert found.keys() >= {("fake", w) for w in ("alone", "cold", "kill", "swap", "unload")}
    assert found.keys() >= {("", "start"), ("", "stop, empty"), ("", "stop, loaded")}
    assert all(ms > 0 for ms in found.values())


async def test_scale_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    with trio.fail_after(110):
        await run("scale.py", "--asks", "100", "--out", str(tmp_path))
    doc = json.loads((tmp_path / "scale.json").read_bytes())
    cells = {(c["slots"], c["bindings"], c["remotes"]): c["medians"] for c in doc["cells"]}
    assert cells.keys() == {(10, 0, 0), (1000, 10_000, 0), (10, 0, 200)}
    assert all(m["rss_mib"] > 10 and m["resolve_p99_ms"] > 0 for m in cells.values())
    assert cells[10, 0, 200]["cold_ms"] > 0
