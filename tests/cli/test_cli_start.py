"""What ``slotd serve`` does before it serves, and what it leaves for later."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LIMIT_S = 30
WORKFLOW = Path(__file__).parents[2] / "config/workflows/plain.json"

PROBE = """
import gc
import slotd.cli.serve
slotd.cli.serve.run = lambda config, port: print(gc.isenabled(), gc.get_freeze_count() > 10_000) or 0
from slotd.cli.root import app
app(["serve"])
"""


def test_what_imports_leave_is_not_looked_through_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.split() == ["True", "True"], done.stderr


SERVE = """
import sys
import trio
import slotd.cli.root
from pathlib import Path
from slotd.cli.serve import Slotd
from slotd.config import parse_config

async def main() -> None:
    async with trio.open_nursery() as nursery:
        slotd = Slotd(parse_config(sys.argv[1], "here", Path("/")))
        await nursery.start(slotd.run)
        print(*sys.modules, sep="\\n")
        slotd.stop()

trio.run(main)
"""

CONFIG = """
[server]
port = 0
state_dir = {state}
[slots.chat]
type = "llm"
engine = "command"
command = ["engine", "{{port}}"]
"""

COMFY = """
[slots.pictures]
type = "image"
engine = "comfyui"
url = "http://127.0.0.1:9"
options.workflows.plain = {workflow}
"""

AT_FIRST_USE = {
    "slotd.comfy",  # with the first slot that is a ComfyUI
    "slotd.engine.comfyui",
    "slotd.omni.conversation",  # with the first chat that asks for tools
    "slotd.omni.fetch",
    "slotd.omni.tools",
    "httpcore",  # with the first remote, as are the certificates
}
ELSEWHERE = {
    "huggingface_hub",  # in a program of its own
    "jsonschema",
    "matplotlib",
    "numpy",
    "slotd.engine.llama_worker",
    "slotd.testing",
    "xllamacpp",
}


def modules(text: str) -> set[str]:
    """Those that are loaded when slotd listens."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE, text], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_what_the_first_request_does_not_need_is_not_loaded_before_slotd_listens(tmp_path: Path) -> None:
    config = CONFIG.format(state=json.dumps(str(tmp_path / "state")))
    assert modules(config) & (AT_FIRST_USE | ELSEWHERE) == set()


def test_what_a_configuration_asks_for_is_loaded_with_it(tmp_path: Path) -> None:
    """So that the names above are known to be names of something."""
    config = CONFIG.format(state=json.dumps(str(tmp_path / "state")))
    config += COMFY.format(workflow=json.dumps(str(WORKFLOW)))
    assert {"slotd.comfy", "slotd.engine.comfyui"} <= modules(config)
    assert all(find_spec(name) for name in AT_FIRST_USE)
