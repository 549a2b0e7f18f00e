"""Assembled answers against those of a real llama.cpp, live."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from assemble_support import ASSEMBLED, FAILING, FILLED, FILLED_HELD_BACK, HELD_BACK, Case, comparable

from slotd.exchange.assemble import NotAssemblable, plan_assembly

pytestmark = pytest.mark.real_engine

WORKER = Path(__file__).with_name("llama_worker.py")


class Engine:
    def __init__(self, address: str) -> None:
        self._port = int(address.rsplit(":", 1)[1])

    def post(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.headers.get_content_type(), response.read()
        finally:
            connection.close()


@contextmanager
def hosted(model: Path, kind: str) -> Iterator[Engine]:
    pytest.importorskip("xllamacpp")
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), str(model), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with worker:
        assert worker.stdout is not None
        try:
            address = worker.stdout.readline().strip()
            assert address, "the engine did not start"
            yield Engine(address)
        finally:
            worker.kill()


@pytest.fixture(scope="session")
def assembly_engine(demo_model: Path) -> Iterator[Engine]:
    with hosted(demo_model, "chat") as engine:
        yield engine


@pytest.fixture(scope="session")
def tight_engine(demo_model: Path) -> Iterator[Engine]:
    with hosted(demo_model, "tight") as engine:
        yield engine


@pytest.mark.parametrize("case", ASSEMBLED.values(), ids=ASSEMBLED)
def test_equals_the_engines_own_answer(assembly_engine: Engine, case: Case) -> None:
    path, request = case
    body = json.dumps(request).encode()
    status, _, expected = assembly_engine.post(path, body)
    assembly = plan_assembly(path, body)
    assert assembly is not None
    stream_status, content_type, stream = assembly_engine.post(path, assembly.body)
    assert (stream_status, content_type) == (200, "text/event-stream")
    assembly.feed(stream)
    assert assembly.done
    answer = assembly.finish()
    assert answer.status == status == 200
    assert comparable(answer.body) == comparable(expected)


@pytest.fixture(scope="session")
def fim_engine() -> Iterator[Engine]:
    given = os.environ.get("SLOTD_TEST_FIM_MODEL")
    if not given:
        pytest.skip("SLOTD_TEST_FIM_MODEL names no model with tokens for infill")
    with hosted(Path(given), "chat") as engine:
        yield engine


@pytest.mark.parametrize("case", FILLED.values(), ids=FILLED)
def test_a_filled_gap_equals_the_engines_own_answer(fim_engine: Engine, case: Case) -> None:
    test_equals_the_engines_own_answer(fim_engine, case)


@pytest.mark.parametrize("case", FILLED_HELD_BACK.values(), ids=FILLED_HELD_BACK)
def test_what_is_left_out_of_a_gap_is_noticed(fim_engine: Engine, case: Case) -> None:
    test_text_that_the_stream_left_out_is_noticed(fim_engine, case)


@pytest.mark.parametrize("case", HELD_BACK.values(), ids=HELD_BACK)
def test_text_that_the_stream_left_out_is_noticed(assembly_engine: Engine, case: Case) -> None:
    path, request = case
    assembly = plan_assembly(path, json.dumps(request).encode())
    assert assembly is not None
    assembly.feed(assembly_engine.post(path, assembly.body)[2])
    with pytest.raises(NotAssemblable):
        assembly.finish()


def test_a_message_that_begins_inside_a_character_is_noticed_at_once(assembly_engine: Engine) -> None:
    request = {
        "messages": [{"role": "user", "content": "Repeat this text exactly and nothing else:\n🌟🌟"}],
        "max_tokens": 12,
        "temperature": 0,
        "system": "Answer with stars only: 🌟🌟🌟🌟🌟🌟🌟🌟🌟🌟",
    }
    body = json.dumps(request).encode()
    assembly = plan_assembly("/v1/messages", body)
    assert assembly is not None
    stream = assembly_engine.post("/v1/messages", assembly.body)[2]
    if b"message_start" in stream:
        pytest.skip("this model began its answer with a whole character")
    first_event = stream.index(b"\n\n") + 2
    with pytest.raises(NotAssemblable, match="message_start"):
        assembly.feed(stream[:first_event])


@pytest.mark.parametrize("case", FAILING.values(), ids=FAILING)
def test_an_error_inside_the_stream_is_the_engines_own(tight_engine: Engine, case: Case) -> None:
    path, request = case
    body = json.dumps(request).encode()
    status, _, expected = tight_engine.post(path, body)
    assert status >= 400
    assembly = plan_assembly(path, body)
    assert assembly is not None
    stream_status, content_type, stream = tight_engine.post(path, assembly.body)
    assert (stream_status, content_type) == (200, "text/event-stream")
    assembly.feed(stream)
    answer = assembly.finish()
    assert answer.status == status
    assert json.loads(answer.body) == json.loads(expected)
