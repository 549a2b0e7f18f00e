"""What the command line finds out by itself: the server, its key, what this machine lacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import structlog
from typer.testing import CliRunner, Result

from slotd.arbiter.room import Reading
from slotd.cli.api import Api
from slotd.cli.check import machine_warnings, socket_warning
from slotd.cli.output import quiet_log
from slotd.cli.root import app
from slotd.config import load_config
from slotd.testing import Knobs, SlotdProcess, config_text, fake_slot

SMALL = Reading(ram_total_mb=8000, ram_free_mb=8000, gpu_total_mb=4000, gpu_free_mb=4000)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty directory, and nothing of slotd's in the environment."""
    for name in ("SLOTD_URL", "SLOTD_API_KEY", "SLOTD_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)


def slotd(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def status() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slotd", "status"], capture_output=True, text=True, timeout=30
    )


def written(text: str) -> Path:
    path = Path("slotd.toml").absolute()
    path.write_text(text)
    return path


# --- where the server is, and the key ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("[server]\nport = 9123", 9123),
        ("[server]\nport = 9123\nprot = 1", 9123),  # that it has faults is not this command's business
        ('[server]\nport = 9123\nhost = "lab.example"', 9123),  # here all the same
        ("[server]\nport = 0", 8080),
        ("[server]\nport = true", 8080),
        ('[server]\nport = "9123"', 8080),
        ("server = 1", 8080),
        ("[slots.a]", 8080),
        ("[server\nport", 8080),
        (None, 8080),
    ],
)
def test_the_port_of_the_configuration_here_is_asked(text: str | None, port: int) -> None:
    if text is not None:
        written(text)
    assert Api().url == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server]\nport = 9", "The port is that of ./slotd.toml, 9."),
        ("[server\nport", "./slotd.toml cannot be read"),
        ("[server]\nport = true", "no usable server.port"),
        (None, "is it running? Another address: --url"),
    ],
)
def test_who_finds_nobody_is_told_where_the_address_is_from(text: str | None, told: str) -> None:
    if text is not None:
        written(text)
    if text is not None and "= 9" in text:
        done = slotd("status")  # nobody listens there
        assert done.exit_code == 1
        assert told in done.stderr.replace("\n", " ")
    else:
        assert told in str(Api()._unreachable(httpx.ConnectError("refused")))


def test_check_takes_the_file_as_an_argument_too() -> None:
    config = written("[server]\nport = 99999\n")
    for arguments in (["check", str(config)], ["check", "-c", str(config)]):
        done = slotd(*arguments)
        assert done.exit_code == 1
        assert "server.port" in done.stderr


def test_pull_names_the_models_that_there_are() -> None:
    config = written('[models.small]\nsource = "file:a"\n[models.tiny]\nsource = "file:b"\n')
    assert "did you mean 'small'?" in slotd("pull", "smal", "-c", str(config)).stderr.replace("\n", " ")
    assert "its models: 'small', 'tiny'" in slotd("pull", "qqq", "-c", str(config)).stderr.replace("\n", " ")


def test_a_url_that_is_given_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    written("[server]\nport = 9123")
    assert Api("http://a:1/v1").url == "http://a:1"
    monkeypatch.setenv("SLOTD_URL", "http://b:2")
    assert Api().url == "http://b:2"


def test_a_server_with_keys_is_found_and_its_refusal_says_where_the_key_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = tmp_path / "served.toml"
    server = {"state_dir": str(tmp_path / "state")}
    served.write_text(config_text({"chat": fake_slot(Knobs())}, server=server))
    with SlotdProcess(served, env={"SLOTD_API_KEYS": "good;priority=3,other"}) as running:
        written(f"[server]\nport = {running.url.rsplit(':', 1)[1]}")
        for key, code in (("", "auth.required"), ("bad", "auth.forbidden"), ("clé", "auth.required")):
            monkeypatch.setenv("SLOTD_API_KEYS", key)
            refused = status()
            assert refused.returncode == 1
            assert code in refused.stderr
            assert "SLOTD_API_KEYS" in refused.stderr
        # As the server's own environment has it, its priority and all.
        monkeypatch.setenv("SLOTD_API_KEYS", "good;priority=3,other")
        done = status()
        assert done.returncode == 0, done.stderr
        assert "chat" in done.stdout


# --- check ------------------------------------------------------------------------------


def command(program: str, more: str = "") -> str:
    return f'[slots.a]\ntype = "tts"\nengine = "command"\ncommand = ["{program}", "{{port}}"]\n{more}\n'


def test_a_program_that_is_not_here_is_a_warning() -> None:
    config = written(command("no-such-program"))
    done = slotd("check", "-c", str(config))
    assert done.exit_code == 0
    assert "warning: slots.a.command" in done.stderr
    assert "'no-such-program'" in done.stderr
    assert "good" in done.stdout


@pytest.mark.parametrize(
    ("program", "more", "fine"),
    [
        ("sh", "", True),
        ("/bin/sh", "", True),
        ("here/run", 'cwd = "DIR"', True),  # a path begins in the slot's directory
        ("here/run", "", False),
        ("run", 'env = { PATH = "DIR/here" }', True),  # and a name is looked up in its PATH
        ("sh", 'env = { PATH = "DIR/here" }', False),
        ("here/data", 'cwd = "DIR"', False),  # not to be run
        ("{model}-server", "", True),  # not known before
    ],
)
def test_a_program_is_looked_for_as_it_will_be_started(
    program: str, more: str, fine: bool, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "here").mkdir(parents=True)
    for name, mode in (("run", 0o755), ("data", 0o644)):
        (elsewhere / "here" / name).touch(mode)
        (elsewhere / "here" / name).chmod(mode)
    loaded = load_config(written(command(program, more.replace("DIR", str(elsewhere)))))
    assert (machine_warnings(loaded, SMALL) == ()) is fine


def test_without_a_server_of_llama_cpp_its_slots_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = '[models.m]\nsource = "hf:a/b:c"\n[slots.a]\ntype = "llm"\nengine = "llama-cpp"\nmodel = "m"\n'
    (warning,) = machine_warnings(load_config(written(text)), SMALL)
    assert warning.startswith("slots.a.engine: ")
    assert "slotd[llama-cpp]" in warning


def test_memory_that_the_machine_does_not_have_is_warned_of() -> None:
    def found(more: str, machine: Reading = SMALL) -> list[str]:
        text = "[memory]\nreserve_mb = 1000\ngpu_reserve_mb = 500\n" + command("sh", more)
        return [w.split(":")[0] for w in machine_warnings(load_config(written(text)), machine)]

    assert found("memory_mb = 7000\ngpu_memory_mb = 3500") == []
    assert found("memory_mb = 7001") == ["slots.a.memory_mb"]
    assert found("gpu_memory_mb = 3501") == ["slots.a.gpu_memory_mb"]
    assert found("memory_mb = 7001\ngpu_memory_mb = 3501", Reading()) == [], "nobody counts it"
    assert found("", Reading(ram_total_mb=100)) == [], "what is not said is not too much"


def test_check_looks_at_this_machine_by_itself() -> None:
    config = written(command("sh", "memory_mb = 1_000_000_000"))
    done = slotd("check", "-c", str(config))
    assert (done.exit_code, "warning: slots.a.memory_mb" in done.stderr) == (0, True)


def test_what_is_suspicious_is_shown_beside_what_is_wrong() -> None:
    config = written('[server]\nprot = 1\n[models.m]\nsource = "file:missing.gguf"\n')
    done = slotd("check", "-c", str(config))
    assert done.exit_code == 1
    assert "server.prot" in done.stderr
    assert "warning: models.m.source" in done.stderr
    assert "missing.gguf" in done.stderr


def test_check_says_nothing_but_what_it_found() -> None:
    """Whether there is a GPU is of no interest here, nor does slotd's log belong on the terminal."""
    config = written(command("no-such-program", 'device = "gpu0"'))
    done = subprocess.run(
        [sys.executable, "-m", "slotd", "check"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    assert done.stdout == f"{config.name}: good (1 slot, 0 upstreams)\n"
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: slots.a.command: ")


def test_the_log_is_as_before_after_a_check() -> None:
    before = structlog.get_config()
    with quiet_log():
        assert structlog.get_config() != before
    assert structlog.get_config() == before


def test_errors_come_before_warnings_and_nothing_twice() -> None:
    text = '[server]\nprot = 1\nhots = 1\n[models.m]\nsource = "file:missing.gguf"\n'
    config = written(text + command("sh").replace(', "{port}"', ""))
    for verb in ("check", "serve"):
        lines = slotd(verb, "-c", str(config)).stderr.splitlines()
        kinds = [line.startswith("warning: ") for line in lines]
        assert kinds == sorted(kinds)
        assert kinds.count(True) == 2
        assert len(lines) == len(set(lines))


# --- serve ------------------------------------------------------------------------------


def test_serve_warns_of_a_program_that_is_not_here_and_of_too_few_files(tmp_path: Path) -> None:
    config = written(
        f'[server]\nport = 0\nmax_sockets = 5000\nstate_dir = "{tmp_path}/state"\n' + command("nope")
    )
    few = f"ulimit -n 600; exec {sys.executable} -m slotd serve -c {config}"
    with subprocess.Popen(
        ["sh", "-c", few], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "listens on" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert warnings[0].startswith("warning: slots.a.command: there is no program 'nope'")
    assert warnings[1].startswith("warning: server.max_sockets: 5000 clients may connect")
    assert "600" in warnings[1]
    assert "ulimit -n" in warnings[1]


@pytest.mark.parametrize(("files", "fine"), [(None, True), (65536, True), (5064, True), (5063, False)])
def test_there_should_be_a_file_for_each_client(files: int | None, fine: bool) -> None:
    loaded = load_config(written("[server]\nmax_sockets = 5000\n"))
    assert (socket_warning(loaded, files) == ()) is fine


# --- pull -------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", 'api_keys_file = "not-for-me"'])
def test_pull_needs_no_keys(more: str) -> None:
    Path("m.gguf").write_bytes(b"GGUF")
    text = f'[server]\nhost = "0.0.0.0"\nstate_dir = "state"\n{more}\n[models.m]\nsource = "file:m.gguf"\n'
    config = written(text)
    assert slotd("check", "-c", str(config)).exit_code == 1
    done = slotd("pull", "m", "-c", str(config))
    assert done.exit_code == 0, done.stderr
    assert os.path.basename(done.stdout.strip()) == "m.gguf"
