"""A client that leaves gives the engine back, wherever its request has got to."""

from __future__ import annotations

import itertools
import os
import re
import signal
import statistics
import time

import pytest
from real_tools import (
    BATCH,
    CHAT,
    GENERATING,
    Caller,
    Engine,
    Site,
    loaded_machine,
    long_request,
    summary,
    tell,
    wait_until,
)

pytestmark = pytest.mark.real_engine
pytest_plugins = ["real_fixtures"]

KINDS = list(itertools.product(GENERATING, (True, False)))


def _bound_s() -> float:
    """llama.cpp looks for cancellation between two tokens: 8 ms apart, 600 on a busy machine."""
    return 1.0 if loaded_machine() else 0.3


@pytest.mark.parametrize("path", GENERATING)
def test_in_mid_answer_the_engine_is_idle_at_once(site: Site, path: str) -> None:
    engine = site.load("chat")
    for stream in (True, False):
        idle, released = [], []
        for _ in range(3):
            caller = Caller(site.url, path, long_request(path, stream=stream))
            wait_until(lambda: engine.decoded() > 3, 30, "generating")
            began = time.perf_counter()
            caller.leave()
            wait_until(lambda: not engine.working(), 20, "the engine idle")
            idle.append(time.perf_counter() - began)
            wait_until(lambda: site.quiet("chat"), 5, "the lease released")
            released.append(time.perf_counter() - began)
        tell(f"{path} stream={stream}: engine idle {summary(idle)}; released {summary(released)}")
        assert {r["outcome"] for r in site.finished()[:3]} == {"client_gone"}
        assert statistics.median(idle) < _bound_s()
        assert statistics.median(released) < _bound_s()


def test_through_the_openai_client(site: Site) -> None:
    engine = site.load("chat")
    with site.openai() as client:
        stream = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Count."}],
            max_tokens=1500,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        began = time.perf_counter()
        stream.close()
    wait_until(lambda: not engine.working() and site.quiet("chat"), 20, "idle")
    tell(f"openai stream.close(): idle {summary([time.perf_counter() - began])}")


def test_why_answers_are_assembled_the_engine_alone_goes_on(site: Site) -> None:
    """The control: the same request, straight to the engine, outlives its client."""
    engine = site.load("chat")
    before = _predicted(engine)
    caller = Caller(engine.url, CHAT, long_request(CHAT, stream=False, tokens=60))
    wait_until(lambda: engine.decoded() > 3, 30, "generating")
    caller.leave()
    took = wait_until(lambda: not engine.working(), 60, "the engine idle")
    made = _predicted(engine) - before
    tell(f"straight to the engine: {made} of 60 tokens, {took:.1f} s after the client left")
    assert made == 60


def _predicted(engine: Engine) -> int:
    """Tokens that the engine has generated since it started."""
    found = re.search(r"^llamacpp:tokens_predicted_total (\d+)", engine.http.get("/metrics").text, re.M)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_in_mid_prompt_slotd_lets_go_at_once_and_the_engine_after_its_batch(site: Site, stream: bool) -> None:
    """llama.cpp notices once a second that nobody waits for a first token, and acts between two batches.

    That second begins anew whenever the engine answers anybody anything, so it
    is not asked here: its use of the processor tells when it is idle.
    """
    engine = site.load("narrow")
    # Every prompt is another one: a known beginning would not be read again.
    control = long_request(
        CHAT, stream=False, model="narrow", tokens=1, prompt=f"{time.time()} " + "one two " * 150
    )
    timings = site.http.post(CHAT, json=control).json()["timings"]
    batch_s = BATCH * timings["prompt_per_token_ms"] / 1000
    prompt = f"{time.time()} " + "one two three four " * 400
    caller = Caller(
        site.url, CHAT, long_request(CHAT, stream=stream, model="narrow", tokens=4, prompt=prompt)
    )
    wait_until(lambda: site.slot("narrow")["leases"] == 1, 20, "a lease")
    worked = engine.cpu_s()
    wait_until(lambda: engine.cpu_s() > worked + 0.1, 20, "reading the prompt")
    began = time.perf_counter()
    caller.leave()
    released = wait_until(lambda: site.quiet("narrow"), 5, "the lease released")
    idle = _computes_until(engine) - began
    tell(
        f"mid-prompt, stream={stream}: released {released * 1000:.0f} ms, engine idle {idle:.2f} s "
        f"(a batch of {BATCH} takes {batch_s:.2f} s, the whole prompt {batch_s * 1600 / BATCH:.1f} s)"
    )
    assert released < _bound_s()
    assert idle < 1.0 + 3 * batch_s + _bound_s()


def _computes_until(engine: Engine) -> float:
    """When it stopped computing: the last moment before a quiet half second."""
    used, last = engine.cpu_s(), time.perf_counter()
    while time.perf_counter() < last + 0.5:
        time.sleep(0.01)
        if (now := engine.cpu_s()) > used + 0.015:
            used, last = now, time.perf_counter()
    return last


def test_while_queued(site: Site) -> None:
    engine = site.load("narrow")
    holder = Caller(site.url, CHAT, long_request(CHAT, stream=True, model="narrow"))
    holder.read_until(b"data:")
    waiting = []
    for path, stream in KINDS:
        waiting.append(Caller(site.url, path, long_request(path, stream=stream, model="narrow")))
        wait_until(lambda: site.slot("narrow")["queued"] == len(waiting), 10, "queued")
    times = []
    while waiting:
        waiting.pop().leave()
        times.append(wait_until(lambda: site.slot("narrow")["queued"] == len(waiting), 10, "withdrawn"))
    tell(f"while queued: withdrawn {summary(times)}")
    assert len(engine.working()) == len(site.live()) == site.slot("narrow")["leases"] == 1
    holder.leave()
    wait_until(lambda: site.quiet("narrow") and not engine.working(), 20, "idle")
    assert statistics.median(times) < _bound_s()


def test_while_loading(site: Site) -> None:
    site.unload("narrow")
    waiting = [
        Caller(site.url, path, long_request(path, stream=stream, model="narrow")) for path, stream in KINDS
    ]
    wait_until(lambda: site.slot("narrow")["pid"], 20, "a process")
    pid = site.slot("narrow")["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that it loads for as long as this looks
    try:
        wait_until(lambda: site.slot("narrow")["queued"] == len(KINDS), 10, "queued")
        assert site.slot("narrow")["state"] in ("starting", "warming")
        times = []
        while waiting:
            waiting.pop().leave()
            times.append(wait_until(lambda: site.slot("narrow")["queued"] == len(waiting), 10, "withdrawn"))
        assert site.quiet("narrow")
    finally:
        os.kill(pid, signal.SIGCONT)
    tell(f"while loading: withdrawn {summary(times)}")
    # Nobody waits any more: it becomes ready first, or is given up first.
    wait_until(lambda: site.slot("narrow")["state"] in ("ready", "idle", "offline"), 60, "settled")
    assert site.slot("narrow")["leases"] == 0
    assert statistics.median(times) < _bound_s()
