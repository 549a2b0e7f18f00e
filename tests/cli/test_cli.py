"""The command line as a user meets it: exit codes, words, and a running server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slotd.config import demo_text
from slotd.testing import Knobs, SlotdProcess, config_text, fake_slot

LIMIT_S = 30


def slotd(*args: str, url: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SLOTD_URL": url or "http://127.0.0.1:9", "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "slotd", *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=env,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlotdProcess]:
    base = tmp_path_factory.mktemp("cli")
    slots = {
        "chat": fake_slot(Knobs(tokens=3), default=True, aliases=["gpt-x"]),
        "embed": fake_slot(Knobs(), type="embedding", default=True),
        "broken": fake_slot(Knobs(crash_at_start=True, exit_code=3, last_words="no such weights")),
    }
    config = base / "slotd.toml"
    config.write_text(config_text(slots, server={"state_dir": str(base / "state")}))
    with SlotdProcess(config) as running:
        yield running


# --- without a server ------------------------------------------------------------------


def test_version_and_help() -> None:
    assert slotd("--version").stdout.startswith("slotd ")
    for command in (
        "serve",
        "init",
        "check",
        "status",
        "load",
        "logs",
        "routes",
        "explain",
        "pull",
        "events",
    ):
        assert command in slotd("--help").stdout


def test_the_help_has_a_line_for_each_command() -> None:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "80", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "slotd", "--help"], capture_output=True, text=True, timeout=LIMIT_S, env=env
    )
    lines = done.stdout.splitlines()
    first = next(n for n, line in enumerate(lines) if " serve " in line)
    last = next(n for n, line in enumerate(lines) if " events " in line)
    names = [line.strip("│| ").split()[0] for line in lines[first : last + 1]]
    assert len(names) == len(set(names)) == 19, "a description that goes on begins a line with a word of it"
    assert "Exit codes: 0 done, 1 refused or failed, 2 wrong usage." in " ".join(done.stdout.split())


def test_usage_errors_exit_2() -> None:
    assert slotd("no-such-command").returncode == 2
    assert slotd("load").returncode == 2


def test_init_writes_the_demo_and_check_accepts_it(tmp_path: Path) -> None:
    done = slotd("init", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slotd.toml").read_text() == demo_text()
    assert slotd("check", cwd=tmp_path).returncode == 0
    again = slotd("init", cwd=tmp_path)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert slotd("init", "--force", cwd=tmp_path).returncode == 0


def test_check_lists_every_fault_at_once(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(
        '[server]\nprot = 1\n[slots.a]\ntype = "llm"\nengine = "llama-cpp"\nmodel = "nope"\nmax_paralel = 2\n'
    )
    done = slotd("check", "-c", str(config))
    assert done.returncode == 1
    for words in ("config.invalid", "server.prot", "'port'", "slots.a.max_paralel", "'max_parallel'", "nope"):
        assert words in done.stderr, words
    assert slotd("serve", "-c", str(config)).returncode == 1


def test_a_missing_config_says_what_to_do(tmp_path: Path) -> None:
    done = slotd("serve", cwd=tmp_path)
    assert done.returncode == 1
    assert "slotd.toml" in done.stderr


def test_no_server_is_a_typed_error() -> None:
    done = slotd("status")
    assert done.returncode == 1
    assert "client.unreachable" in done.stderr
    assert "--url" in done.stderr


def test_pull_of_a_file_prints_its_path(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    config = tmp_path / "slotd.toml"
    config.write_text(
        f'[server]\nstate_dir = "{tmp_path}/state"\n[models.m]\nsource = "file:m.gguf"\n'
        '[slots.a]\ntype = "llm"\nengine = "llama-cpp"\nmodel = "m"\n'
    )
    done = slotd("pull", "m", "-c", str(config))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "m.gguf")
    wrong = slotd("pull", "n", "-c", str(config))
    assert wrong.returncode == 1
    assert "'n'" in wrong.stderr


# --- with one --------------------------------------------------------------------------


def test_status_shows_slots_and_wakes_nothing(server: SlotdProcess) -> None:
    done = slotd("status", url=server.url)
    assert done.returncode == 0, done.stderr
    assert "embed" in done.stdout
    states = {
        s["name"]: s["state"] for s in json.loads(slotd("status", "--json", url=server.url).stdout)["slots"]
    }
    assert states["embed"] == "offline"


def test_load_unload_restart_kill(server: SlotdProcess) -> None:
    loaded = slotd("load", "chat", url=server.url)
    assert loaded.returncode == 0, loaded.stderr
    assert "ready" in loaded.stdout
    assert "ready" in slotd("restart", "chat", url=server.url).stdout
    assert "offline" in slotd("kill", "chat", url=server.url).stdout
    assert "offline" in slotd("unload", "chat", url=server.url).stdout


def test_a_refused_command_exits_1_with_the_typed_error(server: SlotdProcess) -> None:
    done = slotd("load", "chta", url=server.url)
    assert done.returncode == 1
    assert "slot.not_found" in done.stderr
    assert "'chat'" in done.stderr


def test_a_failed_load_shows_the_engines_words(server: SlotdProcess) -> None:
    done = slotd("load", "broken", url=server.url)
    assert done.returncode == 1
    assert "slot.load_failed" in done.stderr
    assert "no such weights" in done.stderr


def test_routes_and_explain(server: SlotdProcess) -> None:
    routes = slotd("routes", url=server.url)
    assert routes.returncode == 0, routes.stderr
    assert "gpt-x" in routes.stdout
    explained = json.loads(slotd("explain", "gpt-x", "--json", url=server.url).stdout)
    assert "slot:chat" in json.dumps(explained)
    unknown = slotd("explain", "gpt-y", url=server.url)
    assert "dispatch.no_route" in unknown.stdout + unknown.stderr


def test_logs_and_events(server: SlotdProcess) -> None:
    slotd("load", "chat", url=server.url)
    logs = slotd("logs", "chat", url=server.url)
    assert logs.returncode == 0, logs.stderr
    assert "fake engine listening" in logs.stdout
    silent = slotd("logs", "embed", url=server.url)
    assert (silent.returncode, silent.stdout) == (0, "")
    assert "slot 'embed' has written nothing" in silent.stderr
    events = slotd("events", url=server.url)
    assert events.returncode == 0, events.stderr
    assert "slot.transition chat offline -> starting" in events.stdout


# --- the process -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_exit_code_0(tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "slotd.toml"
    slots = {"chat": fake_slot(Knobs(), autoload=True)}
    config.write_text(config_text(slots, server={"state_dir": str(tmp_path / "state")}))
    with SlotdProcess(config) as running:
        assert slotd("load", "chat", url=running.url).returncode == 0
        pid = json.loads(slotd("status", "--json", url=running.url).stdout)["slots"][0]["pid"]
        running.send(number)
        assert running.wait(LIMIT_S) == 0
        assert not Path(f"/proc/{pid}").exists()


def test_a_second_slotd_on_the_same_state_directory_is_refused(server: SlotdProcess, tmp_path: Path) -> None:
    config = tmp_path / "slotd.toml"
    with SlotdProcess(_config(tmp_path)):
        done = slotd("serve", "-c", str(config))
    assert done.returncode == 1
    assert "server.state_dir_busy" in done.stderr


def test_a_taken_port_is_a_typed_error(server: SlotdProcess, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    done = slotd("serve", "-c", str(_config(tmp_path)), "--port", port)
    assert done.returncode == 1
    assert "server.bind_failed" in done.stderr


def _config(base: Path) -> Path:
    config = base / "slotd.toml"
    config.write_text(config_text({"chat": fake_slot()}, server={"state_dir": str(base / "state")}))
    return config
