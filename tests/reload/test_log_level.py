"""The log's level may change under loggers that have been used before."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import structlog
from slotd.logs import configure, set_level
log = structlog.get_logger("slotd")
configure("warning")
log.warning("one")
log.info("no")
set_level("info")
log.info("two")
log.debug("no")
set_level("error")
log.warning("no")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("three")
"""


def test_the_level_changes_under_used_loggers() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert told == ["one", "two", "three"]
