"""What the real engine takes up, next to what was expected of it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from real_tools import THREADS, tell, wait_until

from slotd.config import SlotConfig
from slotd.engine import llama_cpp
from slotd.engine.need import need_for

pytestmark = pytest.mark.real_engine


@pytest.fixture(scope="module")
def own_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: pages of a file that other engines have mapped too would count in part only."""
    return Path(shutil.copyfile(demo_model, tmp_path_factory.mktemp("estimate") / demo_model.name))


def _slot(ctx_size: int) -> SlotConfig:
    options = {"ctx_size": ctx_size, "threads": THREADS}
    fields = {"name": "s", "type": "llm", "engine": "llama-cpp", "model": "m", "options": options}
    return SlotConfig.model_validate(fields)


def _pss_mb(pid: int) -> float:
    """Of the process and all that descend from it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    children = {
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    }
    return own / 1024 + sum(map(_pss_mb, children))


@pytest.mark.parametrize("ctx_size", [1024, 8192, 24576])
def test_the_estimate_brackets_what_the_engine_takes(own_model: Path, ctx_size: int) -> None:
    slot = _slot(ctx_size)
    estimated = need_for(slot, own_model).ram_mb
    plan = llama_cpp.launch_plan(slot, "m", own_model, Path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    argv = [word.format(host="127.0.0.1", port=port) for word in plan.argv]
    with (
        subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http,
    ):
        try:

            def ready() -> bool:
                assert engine.poll() is None, "the engine ended"
                try:
                    return http.get("/health").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(ready, 60, "the engine is ready")
            http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 8}).raise_for_status()
            measured = _pss_mb(engine.pid)
        finally:
            engine.kill()
    off = estimated / measured - 1
    tell(f"ctx {ctx_size}: estimated {estimated} MiB, measured {measured:.0f} MiB ({off:+.0%})")
    assert 0.9 * measured <= estimated <= 1.4 * measured
