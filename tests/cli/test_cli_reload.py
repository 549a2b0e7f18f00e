"""``slotd reload``: what changed, in lines, or everything that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from slotd.testing import Knobs, SlotdProcess, config_text, fake_slot

LIMIT_S = 30


def reload(url: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slotd", "reload", "--url", url, *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "NO_COLOR": "1"},
    )


def test_reload_shows_what_changed_or_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "slotd.toml"
    chat, old = fake_slot(Knobs(), max_queue=3), fake_slot(Knobs())
    server = {"state_dir": str(tmp_path / "state")}
    file.write_text(config_text({"chat": chat, "old": old}, server=server))
    with SlotdProcess(file, args=["--port", "0"]) as slotd:
        same = reload(slotd.url)
        assert (same.returncode, same.stdout) == (0, "nothing changed\n")

        changed = config_text({"chat": {**chat, "max_queue": 4}, "new": old}, server={**server, "port": 9999})
        file.write_text(changed + 'key_env = "NOT_SET_HERE"\n')
        faulty = reload(slotd.url)
        assert faulty.returncode == 1
        assert "config.invalid" in faulty.stderr
        assert "slots.new" in faulty.stderr

        file.write_text(changed)
        done = reload(slotd.url)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        # Not the port: the one of the command line counts.
        assert lines[:2] == ["- slots.old", "~ slots.chat.max_queue: 3 -> 4"]
        assert lines[2].startswith("+ slots.new: type = ")
        assert len(lines) == 3
        assert '"changed": false' in reload(slotd.url, "--json").stdout


def test_reload_without_a_server(tmp_path: Path) -> None:
    done = reload("http://127.0.0.1:9")
    assert done.returncode == 1
    assert "client.unreachable" in done.stderr
