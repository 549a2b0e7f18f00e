"""Crash-only: slotd is killed under load, and the next one knows what happened and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import trio
from e2e_tools import CHAT, ask, client

from slotd.exchange.race import first_of
from slotd.testing import Harness, Knobs, SlotdProcess, config_text, fake_slot
from slotd.testing.harness import run_harness

GUARD_S = 40


def slots() -> dict[str, Any]:
    return {
        "chat": fake_slot(Knobs(tokens=2000, token_delay_s=0.02, parallel=8), default=True, max_parallel=8),
        "quick": fake_slot(Knobs(tokens=2)),
        "broken": fake_slot(Knobs(crash_at_start=True, exit_code=3)),
    }


def why(url: str, id: str) -> str:
    env = {**os.environ, "SLOTD_URL": url, "NO_COLOR": "1", "COLUMNS": "250"}
    done = subprocess.run(
        [sys.executable, "-m", "slotd", "why", id], capture_output=True, text=True, timeout=20, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def until_listed(http: httpx.AsyncClient, **which: Any) -> list[dict[str, Any]]:
    """Wait until the journal has an event of this kind."""
    while True:
        found: list[dict[str, Any]] = (await http.get("/api/events/history", params=which)).json()["events"]
        if found:
            return found


async def test_a_kill_9_under_load_loses_neither_history_nor_what_was_up(tmp_path: Path) -> None:
    config = tmp_path / "slotd.toml"
    config.write_text(config_text(slots(), server={"state_dir": str(tmp_path / "state")}))
    with trio.fail_after(GUARD_S):
        with SlotdProcess(config) as slotd:
            ids = await _work_and_kill(slotd)
        with SlotdProcess(config) as slotd:
            async with httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=20) as http:
                for id, outcome in ids.items():
                    (told,) = (await http.get(f"/api/why/{id}")).json()["requests"]
                    assert told["record"]["outcome"] == outcome
                lost = [r for r in await until_listed(http, kind="request") if r["outcome"] == "lost"]
                assert len(lost) == 8, "who was being answered"
                told = await trio.to_thread.run_sync(why, slotd.url, lost[0]["id"])
                assert "/v1/chat/completions from 127.0.0.1, " in told
                assert "was under way when slotd ended" in told
                faults = await until_listed(http, kind="slot.fault", slot="broken")
                assert faults[0]["reason"] == "exited_during_load"
                # Of this run: of what was up, both slots, and nothing else.
                run = (await until_listed(http, kind="server.started", limit=1))[0]["run"]
                up: set[str] = set()
                while up != {"chat", "quick"}:
                    loads = await until_listed(http, kind="slot.loaded")
                    up = {e["slot"] for e in loads if e["run"] == run}
                (failed,) = (id for id, outcome in ids.items() if outcome == "error")
                words = await trio.to_thread.run_sync(why, slotd.url, failed)
                assert "slot broken fails: exited_during_load" in words
                assert "slot.load_failed" in words


async def _work_and_kill(slotd: SlotdProcess) -> dict[str, str]:
    """Kill it while eight requests are being answered; what was over before, with its outcome."""
    ids = {}
    async with httpx.AsyncClient(base_url=slotd.url, trust_env=False, timeout=20) as http:
        for model, outcome in (("quick", "ok"), ("broken", "error")):
            answer = await http.post(CHAT, json=ask(model))
            ids[answer.headers["x-request-id"]] = outcome
        async with trio.open_nursery() as nursery:

            async def stream() -> None:
                try:
                    async with http.stream("POST", CHAT, json=ask("chat", stream=True)) as answer:
                        async for _ in answer.aiter_bytes():
                            pass
                except httpx.HTTPError:
                    return  # that is what happens
                raise AssertionError("it was to be cut off")

            for _ in range(8):
                nursery.start_soon(stream)
            phases: list[str] = []
            while phases != ["answering"] * 8:
                phases = [r["phase"] for r in (await http.get("/api/requests")).json()["live"]]
            # A question waits for what has happened before it to be written.
            await http.get("/api/events/history")
            slotd.send(signal.SIGKILL)
            await trio.to_thread.run_sync(slotd.wait, 10)
    return ids


async def test_a_live_request_has_a_story(tmp_path: Path) -> None:
    text = config_text({"slow": fake_slot(Knobs(load_delay_s=60))})

    async def told(slotd: Harness, http: httpx.AsyncClient) -> None:
        await slotd.wait_for("slow", "warming")
        (live,) = slotd.slotd.records.live()
        id = live.id
        document: dict[str, Any] = {}
        while "slot slow: offline -> starting: requested" not in str(document):
            document = (await http.get(f"/api/why/{id}")).json()
        (request,) = document["requests"]
        assert request["record"]["outcome"] == "live"
        lines = [line["text"] for line in request["story"]]
        assert "waits for slot slow" in lines
        assert lines[-1].startswith("still waiting")

    with trio.fail_after(GUARD_S):
        async with run_harness(text, tmp_path) as slotd, client(slotd) as http:
            await first_of(lambda: told(slotd, http), lambda: http.post(CHAT, json=ask("slow")))


async def test_a_journal_that_cannot_be_written_costs_history_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "state" / "journal.sqlite3").mkdir(parents=True)  # no file can be there
    (tmp_path / "state" / "journal.sqlite3" / "x").touch()
    text = config_text({"chat": fake_slot(Knobs(tokens=2), default=True)})
    with trio.fail_after(GUARD_S):
        async with run_harness(text, tmp_path) as slotd, client(slotd) as http:
            answer = await http.post(CHAT, json=ask())
            assert answer.status_code == 200
            refused = await http.get("/api/events/history")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "journal.unavailable"
            # What is in memory can still be told.
            told = await http.get(f"/api/why/{answer.headers['x-request-id']}")
            assert told.json()["requests"][0]["record"]["outcome"] == "ok"
