"""What is really free: made-up /proc and cgroup trees, and the real ones once."""

from __future__ import annotations

import threading
from pathlib import Path

import trio

from slotd.arbiter.meter import Meter
from slotd.arbiter.room import Reading

MEMINFO = "MemTotal:       16384000 kB\nMemFree:  1000 kB\nMemAvailable:    8192000 kB\nHugePages_Total:  0\n"


def tree(root: Path, cgroup: str = "0::/\n", groups: dict[str, dict[str, str]] | None = None) -> Meter:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(MEMINFO)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for path, files in (groups or {}).items():
        group = root / "cgroup" / path
        group.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (group / name).write_text(text)
    return Meter(proc=root / "proc", cgroups=root / "cgroup", gpu=lambda: None)


def mib(n: int) -> str:
    return f"{n << 20}\n"


def test_without_a_cgroup_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    meter = tree(tmp_path, groups={"": {"memory.max": "max\n", "memory.current": mib(100)}})
    assert meter.look() == Reading(16000, 8000)


def test_a_cgroup_bounds_both_and_its_untouched_cache_counts_as_free(tmp_path: Path) -> None:
    files = {
        "memory.max": mib(4000),
        "memory.high": "max\n",
        "memory.current": mib(3000),
        "memory.stat": f"anon 5\ninactive_file {500 << 20}\nslab_reclaimable {100 << 20}\n",
    }
    meter = tree(tmp_path, "12:cpu:/x\n0::/user.slice/app\n", {"user.slice/app": files})
    assert meter.look() == Reading(4000, 1600)


def test_the_tightest_cgroup_above_decides(tmp_path: Path) -> None:
    groups = {
        "a/b": {"memory.max": mib(6000), "memory.current": mib(100)},
        "a": {"memory.max": "max", "memory.high": mib(5000), "memory.current": mib(4900)},
    }
    assert tree(tmp_path, "0::/a/b\n", groups).look() == Reading(5000, 100)


def test_a_cgroup_beyond_its_limit_has_nothing_free(tmp_path: Path) -> None:
    meter = tree(tmp_path, groups={"": {"memory.max": mib(100), "memory.current": mib(120)}})
    assert meter.look() == Reading(100, 0)


def test_what_cannot_be_read_sets_no_limit(tmp_path: Path) -> None:
    meter = Meter(proc=tmp_path / "none", cgroups=tmp_path / "none", gpu=lambda: (3, 7))
    assert meter.look() == Reading(None, None, 7, 3)
    odd = tree(tmp_path, "0::/../../elsewhere\nnonsense\n", {"": {"memory.max": "odd", "memory.current": ""}})
    assert odd.look() == Reading(16000, 8000)


async def test_it_measures_this_machine() -> None:
    with trio.fail_after(10):
        reading = await Meter(gpu=lambda: None).read()
    assert reading.ram_total_mb is not None
    assert reading.ram_free_mb is not None
    assert 0 < reading.ram_free_mb <= reading.ram_total_mb


async def test_a_driver_that_hangs_costs_one_thread_and_can_be_left() -> None:
    hangs, entered = threading.Event(), threading.Event()

    def gpu() -> None:
        entered.set()
        hangs.wait(10)

    meter = Meter(gpu=gpu)
    try:
        with trio.fail_after(5):
            for _ in range(3):
                with trio.move_on_after(0.05) as scope:
                    await meter.read()
                assert scope.cancelled_caught
        assert entered.is_set()
    finally:
        hangs.set()
