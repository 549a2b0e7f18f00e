"""What the command line tells of the past: events, requests, why; upstreams and explain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from slotd.testing import FakeServer, Knobs, SlotdProcess, config_text, fake_slot

LIMIT_S = 30


def slotd(*args: str, url: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SLOTD_URL": url, "NO_COLOR": "1", "COLUMNS": "250"}
    return subprocess.run(
        [sys.executable, "-m", "slotd", *args], capture_output=True, text=True, timeout=LIMIT_S, env=env
    )


def ask(url: str, model: str | None) -> str:
    """Send a request; returns its id."""
    named = {} if model is None else {"model": model}
    body = {**named, "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=LIMIT_S, trust_env=False)
    return answer.headers["x-request-id"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlotdProcess]:
    base = tmp_path_factory.mktemp("history")
    slots = {
        "chat": fake_slot(Knobs(tokens=3), default=True),
        "broken": fake_slot(Knobs(crash_at_start=True, exit_code=3)),
    }
    with FakeServer(Knobs(models=("far-model",))) as far:
        config = base / "slotd.toml"
        upstream = f'[upstreams.far]\nurl = "{far.url}/v1"\n'
        text = config_text(slots, server={"state_dir": str(base / "state")}, more=upstream)
        config.write_text(text)
        with SlotdProcess(config) as running:
            yield running


def test_why_tells_the_story_of_a_request(server: SlotdProcess) -> None:
    done = slotd("why", ask(server.url, None), url=server.url)
    assert done.returncode == 0, done.stderr
    words = [
        "/v1/chat/completions from 127.0.0.1",
        "routed to slot chat",
        "waits for slot chat",
        "slot chat: offline -> starting: requested",
        "slot chat: loaded its engine",
        "slot chat takes it (generation 1)",
        "first byte of the answer",
        "answered with 200",
    ]
    places = [done.stdout.find(word) for word in words]
    assert -1 not in places, (words, done.stdout)
    assert places == sorted(places), done.stdout


def test_why_tells_what_failed(server: SlotdProcess) -> None:
    id = ask(server.url, "broken")
    told = slotd("why", id, url=server.url).stdout
    assert "slot broken fails: exited_during_load" in told
    assert "failed with 502" in told
    assert "slot.load_failed" in told
    document = json.loads(slotd("why", id, "--json", url=server.url).stdout)
    assert document["requests"][0]["record"]["error"] == "slot.load_failed"


def test_why_of_an_unknown_request_says_how_far_back_it_knows(server: SlotdProcess) -> None:
    ask(server.url, None)
    done = slotd("why", "req-nobody", url=server.url)
    assert done.returncode == 1
    assert "request.not_found" in done.stderr
    assert f"which goes back to {time.strftime('%Y-%m-%d')}" in done.stderr


def test_events_are_one_line_each_and_can_be_narrowed(server: SlotdProcess) -> None:
    id = ask(server.url, "broken")
    told = slotd("events", "--since", "10m", "--slot", "broken", url=server.url).stdout.splitlines()
    assert any(line.endswith("slot.transition broken offline -> starting: requested") for line in told)
    assert any("slot.fault broken exited_during_load: " in line for line in told)
    assert any(f"request.finished broken {id} " in line for line in told)
    assert all(" broken " in line for line in told)
    (one,) = slotd("events", "-n", "1", "--kind", "slot.fault", "--json", url=server.url).stdout.splitlines()
    event = json.loads(one)
    assert (event["kind"], event["slot"], event["reason"]) == ("slot.fault", "broken", "exited_during_load")
    later = slotd("events", "--since", "2999-01-01", url=server.url)
    assert (later.stdout, later.stderr) == ("", "nothing is kept that matches\n")
    refused = slotd("events", "--since", "yesterday", url=server.url)
    assert refused.returncode == 1
    assert "request.invalid" in refused.stderr


def test_names_that_there_are_not_are_told(server: SlotdProcess) -> None:
    none = slotd("events", "--kind", "slot.faults", "--slot", "brokn", url=server.url)
    assert (none.returncode, none.stdout) == (0, "")
    assert "no kind of event is called 'slot.faults'; there are slot.fault" in none.stderr
    assert "there is no slot 'brokn' now; slots: broken" in none.stderr
    odd = slotd("events", "--kind", "zzz", url=server.url).stderr
    assert "arbiter.denied" in odd
    assert "server.stopping" in odd
    known = slotd("events", "--kind", "arbiter", "--slot", "broken", url=server.url)
    assert known.stderr == "nothing is kept that matches\n", "there are such, and there have been none"


def test_events_can_be_followed(server: SlotdProcess) -> None:
    args = ["events", "-f", "-n", "1", "--kind", "request.finished"]
    first = ask(server.url, None)
    env = {**os.environ, "SLOTD_URL": server.url}
    with subprocess.Popen(
        [sys.executable, "-m", "slotd", *args],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        # As at a terminal, where tests in the background have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as following:
        assert following.stdout is not None
        assert f" {first} " in following.stdout.readline()
        second = ask(server.url, None)
        assert f" {second} " in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(LIMIT_S) == 0


def test_requests_lists_the_last(server: SlotdProcess) -> None:
    ids = [ask(server.url, None), ask(server.url, "broken")]
    told = slotd("requests", "-n", "2", url=server.url).stdout
    assert [line.split()[0] for line in told.splitlines()] == ["REQUEST", *ids]
    assert "/v1/chat/completions" in told
    document = json.loads(slotd("requests", "--json", url=server.url).stdout)
    assert document["live"] == []
    assert [r["id"] for r in document["recent"][:2]] == ids[::-1]


def test_upstreams_and_explain_in_words(server: SlotdProcess) -> None:
    assert json.loads(slotd("upstreams", "--json", url=server.url).stdout)["upstreams"][0]["name"] == "far"
    told = slotd("upstreams", url=server.url).stdout
    assert told.startswith("UPSTREAM")
    assert "far" in told
    explained = slotd("explain", "chat", url=server.url).stdout
    assert "goes to slot:chat\nbecause of tier 1" in explained
    unknown = slotd("explain", "nobody", url=server.url)
    assert unknown.returncode == 1
    assert "is refused: dispatch.no_route" in unknown.stdout


def test_the_surface_refuses_odd_questions(server: SlotdProcess) -> None:
    for query in ("limit=0", "limit=x", "limit=99999999999", "since=x", "until=x"):
        answer = httpx.get(f"{server.url}/api/events/history?{query}", trust_env=False)
        assert answer.status_code == 400, query
        assert answer.json()["error"]["code"] == "request.invalid"
