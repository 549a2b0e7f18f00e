from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from slotd.process.local import LocalLauncher
from slotd.process.ports import PortPool

_runs = itertools.count()


@pytest.fixture
def ports() -> PortPool:
    """A range of this test process's own; what another program holds in it is passed over."""
    first = 20_000 + os.getpid() * 20 % 10_000
    return PortPool(first, first + 19)


@pytest.fixture
def run_id() -> str:
    return f"test-{os.getpid()}-{next(_runs)}"


@pytest.fixture
def launcher(ports: PortPool, run_id: str) -> LocalLauncher:
    return LocalLauncher(ports, run_id=run_id, guardian=None, ledger=None)


@pytest.fixture
def open_files() -> Callable[[], set[str]]:
    """Lists this process's open pipes, pidfds and sockets, to compare before and after."""

    def listing() -> set[str]:
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            try:
                found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
            except FileNotFoundError:
                continue  # the listing's own
        return found

    return listing


@pytest.fixture
def bystander() -> Iterator[Callable[..., int]]:
    """Starts processes that are nobody's engine: own session, no marker unless given."""
    started: list[subprocess.Popen[bytes]] = []

    def start(env: dict[str, str] | None = None) -> int:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import signal\nprint(flush=True)\nsignal.pause()"],
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
