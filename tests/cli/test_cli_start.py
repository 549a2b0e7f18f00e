"""What ``slotd serve`` does before it serves."""

from __future__ import annotations

import subprocess
import sys

LIMIT_S = 30

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
