"""slotd answers its own pages while an engine loads, and asking them wakes nothing."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from real_tools import CHAT, Caller, Site, hello, loaded_machine, summary, tell, wait_until

pytestmark = pytest.mark.real_engine
pytest_plugins = ["real_fixtures"]

PAGES = ("/metrics", "/api/slots", "/health", "/v1/models", "/api/requests")


def _timed(site: Site, path: str) -> float:
    began = time.perf_counter()
    site.http.get(path).raise_for_status()
    return time.perf_counter() - began


def test_its_pages_answer_in_milliseconds(site: Site) -> None:
    for name in ("chat", "embed", "narrow"):
        site.unload(name)
    starts = site.slot("embed")["starts"]
    caller = Caller(site.url, CHAT, hello(stream=True))
    during: dict[str, list[float]] = {path: [] for path in PAGES}
    wait_until(lambda: site.slot("chat")["pid"], 20, "a process")
    # While it really loads, and computes.
    while site.slot("chat")["state"] in ("starting", "warming"):
        for path in PAGES:
            during[path].append(_timed(site, path))
    caller.read_until(b"[DONE]")
    caller.leave()
    for path, times in during.items():
        tell(f"{path}, while it loads: {summary(times[:20])} ({len(times)} asked)")
        assert times, "it was loaded before anything could be asked"
        assert statistics.median(times) < (0.2 if loaded_machine() else 0.05)
    assert (site.slot("embed")["state"], site.slot("embed")["starts"]) == ("offline", starts)


def test_its_pages_and_status_answer_while_a_load_hangs(site: Site) -> None:
    site.unload("chat")
    site.unload("embed")
    starts = site.slot("embed")["starts"]
    caller = Caller(site.url, CHAT, hello(stream=True))
    wait_until(lambda: site.slot("chat")["pid"], 20, "a process")
    pid = site.slot("chat")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for path in PAGES:
            times = [_timed(site, path) for _ in range(20)]
            tell(f"{path}, while the load hangs: {summary(times)}")
            assert statistics.median(times) < (0.05 if loaded_machine() else 0.02)
        began = time.perf_counter()
        status = subprocess.run(
            [sys.executable, "-m", "slotd", "status", "--url", site.url],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
        tell(f"slotd status, while the load hangs: {time.perf_counter() - began:.2f} s as a process")
        assert "starting" in status.stdout or "warming" in status.stdout
        assert site.slot("chat")["state"] in ("starting", "warming")
    finally:
        os.kill(pid, signal.SIGCONT)
    caller.read_until(b"[DONE]")
    caller.leave()
    assert (site.slot("embed")["state"], site.slot("embed")["starts"]) == ("offline", starts)
