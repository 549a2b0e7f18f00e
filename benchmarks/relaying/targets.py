"""Who is asked: the engine itself, slotd's two lanes, the reference proxy, and peers given by URL."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rig.processes import Cores, Running, with_descendants

__all__ = ["COMPILED", "DIRECT", "EXPRESS", "QUART", "REFERENCE", "Peer", "Target", "start"]

DIRECT, EXPRESS, QUART, REFERENCE = "direct", "slotd", "slotd (Quart lane)", "Quart + httpx"
COMPILED = "slotd, compiled"
HERE = Path(__file__).parent.parent
MODEL = "stub"

CONFIG = """
[server]
port = 0
state_dir = {state}
{express}
[slots.{model}]
type = "llm"
engine = "external"
url = "{url}"
ready_models = false
max_parallel = 2048
max_queue = 2048
"""
"""All else is as by default: log level info, decision records, the journal, the event bus."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that somebody else has started, on this machine and in front of the same stub engine."""

    name: str
    url: str
    pid: int = 0
    """0: its CPU and memory are not looked at."""
    model: str = MODEL
    key: str = ""
    version: str = ""
    small_only: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask. ``pids``: whose CPU and memory count; none for the engine itself."""

    name: str
    host: str
    port: int
    pids: tuple[int, ...] = ()
    model: str = MODEL
    key: str = ""
    path: str = "/v1/chat/completions"
    small_only: bool = False
    cores: str = ""
    """The cores that its process may use, as the kernel lists them."""


@contextmanager
def start(
    folder: Path,
    cores: Cores,
    *,
    stub_port: int,
    worker: str,
    compiled: str,
    peers: list[Peer],
    without: frozenset[str],
) -> Iterator[list[Target]]:
    """All of them, running; those that this starts end with the block. Their logs lie in ``folder``.

    ``compiled``: a Python with a slotd that is compiled, "" for none.
    """
    with ExitStack() as stack:

        def run(name: str, argv: list[str]) -> Running:
            return stack.enter_context(Running(argv, folder / f"{name}.log", core=cores.measured))

        argv = [sys.executable, str(HERE / "rig/engine_stub.py"), "--port", str(stub_port), "--models", MODEL]
        stub = stack.enter_context(Running(argv, folder / "stub.log", core=cores.others))
        engine = stub.word("listening on ")
        targets = [_at(DIRECT, engine, ())]
        if EXPRESS not in without:
            targets.append(_at(EXPRESS, *_slotd(run, folder, "express", engine, express=True)))
        if compiled and COMPILED not in without:
            at = _slotd(run, folder, "compiled", engine, express=True, python=compiled)
            targets.append(_at(COMPILED, *at))
        if QUART not in without:
            targets.append(_at(QUART, *_slotd(run, folder, "quart", engine, express=False)))
        if REFERENCE not in without:
            script = str(HERE / "reference_proxy.py")
            proxy = run("reference", [sys.executable, script, "--upstream", engine, "--worker", worker])
            targets.append(_at(REFERENCE, proxy.word("Running on "), (proxy.pid,)))
        targets += [_peer(p) for p in peers if p.name not in without]
        yield targets


def _slotd(
    run: object, folder: Path, name: str, engine: str, *, express: bool, python: str = sys.executable
) -> tuple[str, tuple[int, ...]]:
    assert callable(run)
    config = folder / f"{name}.toml"
    lane = "" if express else "express = false\n"
    state = json.dumps(str(folder / f"{name}.state"))
    config.write_text(CONFIG.format(state=state, express=lane, model=MODEL, url=engine))
    slotd: Running = run(f"slotd-{name}", [python, "-m", "slotd", "serve", "-c", str(config)])
    url = slotd.word("slotd listens on ")
    return url, tuple(with_descendants(slotd.pid))


def _at(name: str, url: str, pids: tuple[int, ...]) -> Target:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return Target(name, parts.hostname, parts.port or 80, pids, cores=_allowed(pids))


def _peer(peer: Peer) -> Target:
    parts = urlsplit(peer.url)
    if parts.hostname is None:
        raise ValueError(f"not a URL: {peer.url!r}")
    pids = (peer.pid,) if peer.pid else ()
    path = parts.path if parts.path not in ("", "/") else "/v1/chat/completions"
    return Target(
        peer.name,
        parts.hostname,
        parts.port or 80,
        pids,
        peer.model,
        peer.key,
        path,
        peer.small_only,
        _allowed(pids),
    )


def _allowed(pids: tuple[int, ...]) -> str:
    if not pids:
        return ""
    return ",".join(str(c) for c in sorted(os.sched_getaffinity(pids[0])))
