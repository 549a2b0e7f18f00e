"""Finding and killing by group, session, marker and descent."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from process_tools import lives

from slotd.process import hunt
from slotd.process.guardian_main import read_orders
from slotd.process.hunt import Proc


def table(*rows: tuple[int, int, int, int]) -> dict[int, Proc]:
    return {pid: Proc(pid, ppid, pgrp, session, 5, True) for pid, ppid, pgrp, session in rows}


def found(procs: dict[int, Proc], *groups: int) -> set[int]:
    return {proc.pid for proc in hunt.find(procs, groups, ())}


def test_group_session_and_descent() -> None:
    me = os.getpid()
    procs = table(
        (1, 0, 100, 100),  # whatever the table says, never init
        (me, 1, 100, 100),  # nor the hunter
        (100, me, 100, 100),
        (101, 100, 101, 100),  # own group, same session
        (102, 101, 102, 102),  # own session, but a child
        (103, 102, 103, 103),
        (200, me, 200, 200),
    )
    assert found(procs, 100) == {100, 101, 102, 103}
    assert found(procs) == set()


def test_a_zombie_is_not_found_but_its_kin_is() -> None:
    procs = table((100, 9, 100, 100), (101, 100, 101, 101))
    procs[100].alive = False
    assert found(procs, 100) == {101}


@given(st.lists(st.tuples(st.integers(2, 30), st.integers(0, 30)), max_size=30))
def test_descent_ends_even_in_a_torn_table(rows: list[tuple[int, int]]) -> None:
    procs = table(*((pid, ppid, pid, pid) for pid, ppid in rows))
    assert found(procs, 7) >= ({7} & procs.keys())


def test_own_line_of_the_table() -> None:
    me = hunt.read_proc(os.getpid())
    assert me is not None
    assert (me.ppid, me.pgrp, me.session) == (os.getppid(), os.getpgrp(), os.getsid(0))
    assert hunt.snapshot()[me.pid].start_ticks == me.start_ticks


def test_a_program_name_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / ") Z 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"], start_new_session=True) as process:
        proc = hunt.read_proc(process.pid)
        process.kill()
    assert proc is not None
    assert proc.alive
    assert (proc.ppid, proc.pgrp) == (os.getpid(), process.pid)


def test_a_later_owner_of_the_pid_is_spared(bystander: Callable[..., int]) -> None:
    pid = bystander()
    proc = hunt.read_proc(pid)
    assert proc is not None
    proc.start_ticks -= 1
    assert hunt.kill_exact(proc, signal.SIGKILL) is None
    swept = hunt.sweep({pid: proc.start_ticks}, (), limit_s=5, trusted=True)
    assert not swept.killed
    assert lives(pid)


def test_marker_must_match_whole(bystander: Callable[..., int]) -> None:
    pid = bystander({"SLOTD_START": "run:chat:12"})
    assert hunt.sweep({}, ["SLOTD_START=run:chat:1"], limit_s=5, trusted=True).killed == set()
    assert hunt.sweep({}, ["START=run:chat:12"], limit_s=5, trusted=True).killed == set()
    assert hunt.sweep({}, ["SLOTD_START=run:chat:12"], limit_s=5, trusted=True).killed == {pid}


@given(st.lists(st.tuples(st.booleans(), st.integers(2, 9), st.integers(1, 99))), st.integers(1, 7))
def test_orders_survive_any_cut(orders: list[tuple[bool, int, int]], size: int) -> None:
    text = "".join(f"+{pid} {ticks}\n" if start else f"-{pid}\n" for start, pid, ticks in orders).encode()
    expected: dict[int, int] = {}
    for start, pid, ticks in orders:
        if start:
            expected[pid] = ticks
        else:
            expected.pop(pid, None)
    groups: dict[int, int] = {}
    rest = b""
    for at in range(0, len(text), size):
        rest = read_orders(rest + text[at : at + size], groups)
    assert rest == b""
    assert groups == expected
