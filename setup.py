"""Builds slotd; with ``SLOTD_COMPILE=1`` a wheel in which the relay's path is compiled by mypyc.

    SLOTD_COMPILE=1 pip install .

needs a C compiler and a minute, and what comes out behaves the same: the modules are the same ones,
and the tests run over both (``scripts/test-compiled``). An editable install is never compiled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import setup

COMPILED = (
    "slotd/events/bus.py",
    "slotd/exchange/accounted.py",
    "slotd/exchange/answer.py",
    "slotd/exchange/attempts.py",
    "slotd/exchange/claims.py",
    "slotd/exchange/exchange.py",
    "slotd/exchange/frames.py",
    "slotd/exchange/record.py",
    "slotd/exchange/relay.py",
    "slotd/exchange/stall.py",
    "slotd/exchange/wishes.py",
    "slotd/gateway/express/answer.py",
    "slotd/gateway/express/client.py",
    "slotd/gateway/express/head.py",
    "slotd/gateway/express/hangups.py",
    "slotd/gateway/express/lane.py",
    "slotd/gateway/express/listener.py",
    "slotd/gateway/intake.py",
    "slotd/gateway/metrics.py",
    "slotd/gateway/uploads.py",
    "slotd/omni/omni.py",
    "slotd/slot/turnstile.py",
    "slotd/wire/http1.py",
    "slotd/wire/http1_conn.py",
    "slotd/wire/http1_wire.py",
    "slotd/wire/memo.py",
)
"""What runs for every request or token, as far as mypyc compiles it truly."""

WANTED = os.environ.get("SLOTD_COMPILE", "") not in ("", "0")
BUILDS = {"bdist_wheel", "build_ext"} & {*sys.argv}
"""None while it is only asked what building takes, or what the package is."""


def requirements() -> list[str]:
    """To compile: mypyc, and what its type checker has to know of the packages that are used."""
    project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text())["project"]
    return ["mypy[mypyc]>=2.4", *project["dependencies"]]


def modules() -> list[object]:
    """The extension modules. Raises ``ImportError`` without mypyc, and ends without what compiling takes."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        sys.exit(
            f"SLOTD_COMPILE is set, and there is no C compiler ({compiler}); on Debian and Ubuntu: "
            "apt-get install gcc libc6-dev python3-dev. Without SLOTD_COMPILE slotd installs uncompiled."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit(
            "SLOTD_COMPILE is set, and Python's headers are missing; on Debian and Ubuntu: "
            "apt-get install python3-dev. Without SLOTD_COMPILE slotd installs uncompiled."
        )
    from mypyc.build import mypycify

    source = Path(__file__).parent / "src"
    os.environ["MYPYPATH"] = str(source)
    return mypycify(
        [str(source / name) for name in COMPILED], opt_level="3", debug_level="0", group_name="slotd"
    )


if BUILDS:
    # What an earlier build has left there goes into the wheel: modules compiled that are so no more.
    for stale in (Path(__file__).parent / "build").glob("lib*"):
        shutil.rmtree(stale)

setup(
    ext_modules=modules() if WANTED and BUILDS else [],
    setup_requires=requirements() if WANTED else [],
)
