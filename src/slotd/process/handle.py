"""One engine process as slotd's child: start it, see its end, stop it, reap it."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from slotd.errors import SpawnFailed, SpawnStarved
from slotd.process import hunt
from slotd.process.identity import ProcessIdentity
from slotd.process.listener import Holder, holder_of
from slotd.process.logs import LogRing
from slotd.process.plan import Address, ExitStatus
from slotd.process.vitals import Footprint, Vitals, read_footprint, read_vitals

__all__ = ["Child", "LocalEngine", "spawn"]

KILL_WAIT_S = 5.0
"""How long SIGKILL may take until a process counts as unkillable."""

NUDGES = 3
"""How often a leader that was asked to stop is asked again."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Child:
    """What :func:`spawn` made. The receiver closes both descriptors and reaps the process."""

    process: subprocess.Popen[bytes]
    identity: ProcessIdentity
    pidfd: int
    output: int


def spawn(slot: str, argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> Child:
    """Start a program as the leader of its own session and group. Blocking; may run in any thread.

    Input is ``/dev/null``; standard output and error share one pipe. Raises
    :class:`SpawnFailed`, and then nothing is left.

    Meant for a worker thread: the call returns only when the kernel has loaded
    the program, and from a cold network mount that takes seconds that the loop
    must not lose. What usually forbids it, PDEATHSIG (it fires when the
    forking *thread* ends), is not used: the guardian covers slotd's death.
    """
    if not argv:
        raise SpawnFailed(f"slot {slot!r} has an empty command; name a program in its configuration")
    try:
        output, writer = os.pipe()
    except OSError as error:
        raise _explain(slot, argv[0], cwd, error) from error
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        os.close(output)
        raise _explain(slot, argv[0], cwd, error) from error
    finally:
        os.close(writer)
    try:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None, "a child that is not reaped is in /proc"
        pidfd = os.pidfd_open(process.pid)  # not reaped, so the pid is its own
    except OSError as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(output)
        raise _explain(slot, argv[0], cwd, error) from error
    return Child(process, identity, pidfd, output)


class LocalEngine:
    """A running child; implements :class:`slotd.process.plan.EngineHandle`.

    The launcher owns it and drives its end (:meth:`ended`, :meth:`kill`,
    :meth:`reap`); others use the protocol. After :meth:`reap` a stop request
    does nothing: the pid may be somebody else's by then.
    """

    def __init__(self, child: Child, address: Address, logs: LogRing, marker: str) -> None:
        self._child = child
        self._address = address
        self._logs = logs
        self._marker = marker
        # Its deadline is when patience ends. Moving it is all that a stop
        # request has to do: the task that waits for the exit does the rest.
        self._patience = trio.CancelScope()
        self._asked_to_stop = trio.Event()
        # One reading at a time: one that the kernel holds up costs one thread,
        # and delays nothing but the next readings of this very engine.
        self._reader = trio.CapacityLimiter(1)
        self._killed = False
        self._status: ExitStatus | None = None
        self._reaped = False

    @property
    def address(self) -> Address:
        return self._address

    @property
    def pid(self) -> int | None:
        return self._child.identity.pid

    @property
    def logs(self) -> LogRing:
        return self._logs

    @property
    def identity(self) -> ProcessIdentity:
        return self._child.identity

    @property
    def status(self) -> ExitStatus | None:
        """How the leader ended; None while it lives."""
        return self._status

    @property
    def killed(self) -> bool:
        """Whether SIGKILL was sent to the leader."""
        return self._killed

    def request_stop(self, grace_s: float) -> None:
        if self._status is not None or self._killed:
            return
        if grace_s <= 0:
            self.kill()
            return
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + grace_s)
        if not self._asked_to_stop.is_set():
            self._asked_to_stop.set()
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # a stopped process handles no SIGTERM

    async def nudge(self, after_s: float) -> None:
        """Send SIGTERM again each ``after_s`` seconds once a stop was requested, ``NUDGES`` times at most.

        Ends early with the leader; cancelled, it has nothing to undo.
        """
        await self._asked_to_stop.wait()
        for _ in range(NUDGES):
            await trio.sleep(after_s)
            if self._status is not None or self._killed:
                return
            self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the whole group, unless the leader has ended. Synchronous."""
        if self._status is None and not self._killed:
            self._killed = True
            self._patience.deadline = min(self._patience.deadline, trio.current_time())
            self._signal_group(signal.SIGKILL)

    def owns_listener(self) -> bool:
        return self._holder() is Holder.OURS

    def stranger_listens(self) -> bool:
        return self._holder() is Holder.STRANGER

    async def vitals(self) -> Vitals | None:
        return await self._read(read_vitals)

    async def footprint(self) -> Footprint | None:
        return await self._read(read_footprint)

    async def ended(self) -> ExitStatus | None:
        """Wait for the leader's end; it stays a zombie, so that its pid and group remain its own.

        Returns its status. Enforces the deadline of :meth:`request_stop` by :meth:`kill`. None if
        the leader outlives SIGKILL by ``KILL_WAIT_S`` seconds. To be awaited
        once; cancelled, it has done nothing to the engine.
        """
        with self._patience:
            await trio.lowlevel.wait_readable(self._child.pidfd)
            self._status = _peek_status(self._child.pidfd)
            return self._status
        self.kill()
        return await self.ended_by_kill()

    async def ended_by_kill(self) -> ExitStatus | None:
        """As :meth:`ended` once :meth:`kill` was called: waits at most ``KILL_WAIT_S`` seconds."""
        with trio.move_on_after(KILL_WAIT_S):
            await trio.lowlevel.wait_readable(self._child.pidfd)
            self._status = _peek_status(self._child.pidfd)
        return self._status

    def sweep(self, limit_s: float) -> hunt.Swept:
        """Kill every process of this start, the leader too if it lives. Blocking; any thread."""
        identity = self._child.identity
        return hunt.sweep(
            {identity.pid: identity.start_ticks},
            [self._marker],
            limit_s=limit_s,
            since_ticks=identity.start_ticks,
            trusted=True,  # the leader is not reaped, so its pid cannot have come round
        )

    def reap(self) -> None:
        """Let the zombie go and close the pidfd. Idempotent.

        A leader that would not die is left to ``subprocess``, which reaps it
        at some later start, should it end after all.
        """
        if not self._reaped:
            self._reaped = True
            self._child.process.poll()
            os.close(self._child.pidfd)

    async def _read(self, reading: Callable[[int, int, str], T | None]) -> T | None:
        await trio.lowlevel.checkpoint()
        if self._status is not None or self._reaped:
            return None
        identity = self._child.identity
        found = await trio.to_thread.run_sync(
            functools.partial(reading, identity.pid, identity.start_ticks, self._marker),
            limiter=self._reader,
            abandon_on_cancel=True,  # it only reads, and holds nothing
            thread_name="slotd-vitals",
        )
        return None if self._status is not None else found

    def _holder(self) -> Holder:
        if self._reaped:
            return Holder.NOBODY
        try:
            return holder_of(self._address.port, self._child.identity.pid, self._members)
        except OSError:
            return Holder.NOBODY  # no descriptors left to look with: not seen yet

    def _members(self) -> list[int]:
        identity = self._child.identity
        found = hunt.find(hunt.snapshot(), [identity.pid], [self._marker], since_ticks=identity.start_ticks)
        return [proc.pid for proc in found]

    def _signal_group(self, signum: int) -> None:
        if not self._reaped:
            hunt.signal_group(self._child.identity.pid, signum)


def _peek_status(pidfd: int) -> ExitStatus:
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        info = None  # somebody else in this process reaped it
    if info is None:
        return ExitStatus(code=None)
    if info.si_code == os.CLD_EXITED:
        return ExitStatus(code=info.si_status)
    return ExitStatus(code=None, signal=info.si_status)


def _explain(slot: str, program: str, cwd: str | None, error: OSError | ValueError) -> SpawnFailed:
    number = error.errno if isinstance(error, OSError) else None
    short = number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    at_cwd = cwd is not None and isinstance(error, OSError) and error.filename == cwd
    if at_cwd:
        advice = f"cannot use the working directory {cwd!r} ({error}); create it or correct `cwd`"
    elif number == errno.ENOENT:
        advice = f"program {program!r}, or its #! interpreter, not found; install it or write its full path"
    elif number == errno.EACCES:
        advice = f"program {program!r} may not be executed; check chmod +x and the mount (noexec)"
    elif number == errno.ENOEXEC:
        advice = f"program {program!r} does not run on this machine; check its architecture or its #! line"
    elif short:
        advice = f"the system is out of processes, files or memory ({error}); check ulimit -u and -n"
    elif number == errno.E2BIG:
        advice = "the command line and environment are too long; shorten them or use a file"
    else:
        advice = f"cannot start program {program!r}: {error}"
    return (SpawnStarved if short else SpawnFailed)(
        f"slot {slot!r}: {advice}",
        details={
            "slot": slot,
            "program": program,
            "errno": None if number is None else errno.errorcode.get(number),
        },
    )
