"""The real engine under both watchers: busy, frozen, well, and with damaged weights."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_tools import (
    CHAT,
    LOAD_S,
    TEXT,
    Caller,
    Site,
    hello,
    long_request,
    narrow_slot,
    running,
    tell,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.real_engine

TIMEOUT_S = 1
DAMAGE = 0.5, 0.02
"""Where the damage begins and how much there is, in parts of the file."""


def _damaged(source: Path, target: Path) -> None:
    """The same model with random bytes in the middle of its weights."""
    shutil.copyfile(source, target)
    size = target.stat().st_size
    with open(target, "r+b") as file:
        file.seek(int(size * DAMAGE[0]))
        file.write(random.Random(1).randbytes(int(size * DAMAGE[1])))


@pytest.fixture(scope="module")
def watched(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A well model and a damaged one, under a short time-out."""
    folder = tmp_path_factory.mktemp("watched")
    _damaged(demo_model, folder / "damaged.gguf")
    models = {"smollm2": f"file:{demo_model}", "damaged": f"file:{folder}/damaged.gguf"}
    slot = {**narrow_slot(), "check_output": True}
    # Two threads wait for each other at every step, which takes ages where others compute, too.
    slot["options"] = {**slot["options"], "threads": 1}
    slots = {
        "chat": {**slot, "liveness_timeout_s": TIMEOUT_S},
        "damaged": {**slot, "model": "damaged"},
    }
    with running(write_config(folder, slots, models)) as slotd:
        yield slotd


def test_its_words_are_found_good(watched: Site) -> None:
    watched.load("chat")
    took = wait_until(lambda: watched.slot("chat")["checked"] == "ok", LOAD_S, "the check's end")
    tell(f"words found good {took:.2f} s after the load")


def test_a_long_prompt_is_left_alone(watched: Site) -> None:
    engine = watched.load("chat")
    prompt = " ".join(f"word{n}" for n in range(300))
    used = engine.cpu_s()
    began = time.perf_counter()
    caller = Caller(watched.url, TEXT, long_request(TEXT, stream=True, prompt=prompt, tokens=8))
    caller.read_until(b"data: [DONE]")
    caller.leave()
    took = time.perf_counter() - began
    tell(f"{took:.2f} s, {engine.cpu_s() - used:.2f} s of CPU, with a time-out of {TIMEOUT_S} s")
    assert took > 1.2 * TIMEOUT_S, "too quick to tell anything"
    assert watched.slot("chat")["pid"] == engine.pid


def test_an_idle_engine_is_left_alone(watched: Site) -> None:
    engine = watched.load("chat")
    with pytest.raises(AssertionError):
        wait_until(lambda: watched.slot("chat")["pid"] != engine.pid, 3 * TIMEOUT_S, "its end")


def test_a_stopped_engine_is_found_and_its_request_answered(watched: Site) -> None:
    engine = watched.load("chat")
    caller = Caller(watched.url, CHAT, long_request(CHAT, stream=True))
    caller.read_until(b"data:")
    with watched.watching() as events:
        began = time.perf_counter()
        os.kill(engine.pid, signal.SIGSTOP)
        fault = events.next("slot.fault")
        took = time.perf_counter() - began
        caller.read_until(b"slot.engine_lost")
        caller.leave()
    tell(f"a stopped engine was found after {took:.2f} s: {fault}")
    assert "the process is stopped" in str(fault)
    assert took < TIMEOUT_S + 1
    assert watched.http.post(CHAT, json=hello()).status_code == 200
    assert watched.slot("chat")["pid"] != engine.pid


def test_damaged_weights_are_found(watched: Site) -> None:
    watched.load("damaged")
    took = wait_until(lambda: watched.slot("damaged")["state"] == "error", LOAD_S, "the verdict")
    fault = watched.slot("damaged")["fault"]
    answer = watched.http.post(CHAT, json=hello("damaged"))
    tell(f"damaged weights found {took:.2f} s after the load: {fault}")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "slot.output_sanity_failed"
    assert "over and over" in answer.json()["error"]["message"]
