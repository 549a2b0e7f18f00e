"""The journal on filesystems that are really full or read-only, in a process of its own for each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

GUARD_S = 30
TEXT = "x" * 1000
HERE = [sys.executable, __file__]
IN_OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


# --- what runs in the other process ------------------------------------------------------------


def small_filesystem(place: Path) -> Callable[[], None]:
    """A filesystem of 512 KiB, which nobody else sees; returns what makes it larger."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "small", str(place)], check=True)
    return lambda: _remount(place, "size=16m")


def limited_files(place: Path) -> Callable[[], None]:
    """No file of this process may outgrow 512 KiB; returns what lifts that."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def read_only(place: Path) -> Callable[[], None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "fixed", str(place)], check=True)
    return lambda: _remount(place, "rw")


def _remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


async def overflow(place: Path, spoil: Callable[[Path], Callable[[], None]]) -> dict[str, Any]:
    """Publish more than there is room for, mend the place, and tell what became of it all."""
    from slotd.errors import JournalUnavailable
    from slotd.events import EventBus, types
    from slotd.journal import journal as module

    module.RETRY_S = (0.02, 0.05)
    mend, bus, published = spoil(place), EventBus(10), 0

    def publish(count: int) -> None:
        nonlocal published
        for _ in range(count):
            bus.publish(types.SLOT_FAULT, {"n": published, "text": TEXT}, slot="chat")
            published += 1

    with trio.fail_after(GUARD_S):
        async with trio.open_nursery() as nursery:
            journal = module.Journal(place / "journal.sqlite3", 10_000, 10_000, 200, bus, "run")
            await nursery.start(journal.run)
            tries, judge = 0, journal._refused

            async def counted(error: Exception) -> None:
                nonlocal tries
                tries += 1
                await judge(error)

            journal._refused = counted  # type: ignore[method-assign] # to wait for what cannot be seen
            while tries < 3:
                publish(50)
                with suppress(JournalUnavailable):
                    await journal.events(limit=1)
            publish(500)  # nobody waits for the disk
            mend()
            kept: list[Any] = []
            while not kept or kept[-1].data.get("n") != published - 1:
                try:
                    kept = await journal.events(limit=10_000)
                except JournalUnavailable:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    numbers = [e.data["n"] for e in kept if "n" in e.data]
    missed = sum(e.data["missed"] for e in kept if "missed" in e.data)
    return {"published": published, "numbers": numbers, "missed": missed, "dropped": journal.dropped}


# --- the tests -----------------------------------------------------------------------------------


def mounts_are_possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    mount = ["mount", "-t", "tmpfs", "try", "/mnt"]
    return subprocess.run([*IN_OWN_MOUNTS, *mount], capture_output=True, timeout=GUARD_S).returncode == 0


@pytest.mark.parametrize("how", ["limited_files", "small_filesystem", "read_only"])
def test_a_place_without_room_costs_what_does_not_fit_and_is_told(tmp_path: Path, how: str) -> None:
    if how != "limited_files" and not mounts_are_possible():
        pytest.skip("this machine lets nobody mount a filesystem")
    command = [*([] if how == "limited_files" else IN_OWN_MOUNTS), *HERE, how, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S + 10)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # All that was published is there, once and in order, or was counted as missed.
    assert told["numbers"] == sorted(set(told["numbers"]))
    assert len(told["numbers"]) + told["missed"] == told["published"]
    assert told["dropped"] == told["missed"] > 0
    # One warning when it began, one when it was over; none for each try. (A file
    # that has become too long may be mended by opening it anew: then there are more.)
    refused, again = (
        [line for line in done.stdout.splitlines() if words in line]
        for words in ("the journal cannot be written", "the journal is written again")
    )
    assert len(refused) == len(again)
    assert how == "limited_files" or len(refused) == 1
    assert f"dropped={told['missed']}" in again[-1]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(trio.run(overflow, Path(sys.argv[2]), globals()[sys.argv[1]])) + "\n")
