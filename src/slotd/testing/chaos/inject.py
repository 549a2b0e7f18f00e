"""Carries faults out on a running site."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from contextlib import suppress
from typing import Any, assert_never

import trio

from slotd.slot.state import UP, SlotState
from slotd.testing.chaos import clients, table
from slotd.testing.chaos import plan as p
from slotd.testing.chaos.oracle import Expect, Oracle
from slotd.testing.chaos.site import Site, SiteDown

__all__ = ["Injector"]

REACH_S = 12.0
"""How long a fault waits for the engine that it is aimed at to be up."""

GUARDIAN_S = 2.0
"""No process outlives a killed slotd for longer."""

SLACK_S = 1.0
"""For a busy machine, on top of bounds that slotd itself keeps."""

LOOK_S = 0.05


class Missed(Exception):
    """There was nothing to act on."""


class Injector:
    """Carries out one fault after another, or many at a time."""

    def __init__(self, site: Site, oracle: Oracle, expect: Expect) -> None:
        self._site = site
        self._oracle = oracle
        self._expect = expect
        self._edits = 0
        self._stopped: set[int] = set()

    async def inject(self, step: p.Step) -> None:
        """Carry the fault out; returns when it is over. What cannot be done is noted and no error."""
        fault = step.fault
        rng = random.Random(step.number)
        try:
            if not isinstance(fault, p.BreakSlotd):
                with trio.move_on_after(REACH_S):
                    await self._site.wait_up()
            await self._do(fault, rng)
        except (Missed, SiteDown, ProcessLookupError) as exc:
            self._oracle.could_not(step, str(exc) or type(exc).__name__)
        except TimeoutError as exc:
            self._oracle.violated(f"the management surface: {exc} ({p.told(fault)})")
        else:
            self._oracle.done(step)

    async def _do(self, fault: p.Fault, rng: random.Random) -> None:
        site = self._site
        match fault:
            case p.KillEngine(slot, group):
                pid = await self._strike(fault, slot)
                (os.killpg if group else os.kill)(pid, signal.SIGKILL)
            case p.Freeze(slot, for_s):
                pid, _ = await self._up(slot)
                await self._freeze(pid, for_s)
            case p.FreezeForGood(slot):
                await self._freeze_for_good(fault)
            case p.Stubborn(slot):
                await self._turn(slot, refuse_sigterm=True)
                await self._order(slot, "restart")
            case p.StartFails(slot, code, after_s, words):
                site.mood(
                    slot,
                    crash_at_start=True,
                    exit_code=code,
                    startup_delay_s=after_s,
                    last_words=words,
                )
                await self._replace(fault, slot)
            case p.StealPort(slot, after_s):
                await self._steal_port(fault, slot, after_s)
            case p.Hog(slot, memory_mb):
                site.mood(slot, memory_mb=memory_mb)
                await self._replace(fault, slot)
            case p.Misbehave():
                await self._misbehave(fault)
            case p.Command(slot, verb, model):
                await self._order(slot, verb, model)
            case p.Reload():
                await self._reload(fault)
            case p.DiskFull(for_s):
                await self._fill_disk(for_s)
            case p.BreakSlotd(how):
                await self._break_slotd(how)
            case p.Leave(slot):
                await clients.leave(site, site.slots[slot].service, fault, rng)
            case p.Stall(slot):
                await clients.stall(site, site.slots[slot].service, fault, rng)
            case p.HalfClose(slot):
                await clients.half_close(site, site.slots[slot].service, fault, rng)
            case p.Babble():
                await clients.babble(site, fault)
            case _:
                assert_never(fault)

    # --- engines ------------------------------------------------------------------------

    async def _up(self, slot: str) -> tuple[int, int]:
        """Pid and generation of the slot's engine, loading it if need be. Raises :class:`Missed`."""
        with trio.move_on_after(REACH_S):
            for _ in range(3):
                view = await self._site.slot(slot)
                if SlotState(view["state"]) in UP and view["pid"] is not None:
                    return view["pid"], view["generation"]
                await self._order(slot, "load")
        raise Missed(f"{slot} does not come up")

    async def _strike(self, fault: p.Fault, slot: str) -> int:
        """The pid of an engine that is about to be killed, with the oracle told."""
        pid, generation = await self._up(slot)
        if not table.alive(pid):
            raise Missed("it has just ended")
        self._oracle.strikes(fault, slot, generation)
        return pid

    async def _replace(self, fault: p.Fault, slot: str) -> None:
        """Kill the engine, so that another one starts (with the mood that has been set)."""
        try:
            pid = await self._strike(fault, slot)
        except (Missed, SiteDown):
            self._site.good_mood(slot)
            raise
        os.killpg(pid, signal.SIGKILL)
        await self._order(slot, "load")

    async def _freeze(self, pid: int, for_s: float) -> None:
        if pid in self._stopped:
            raise Missed("it is frozen for good")
        os.killpg(pid, signal.SIGSTOP)
        try:
            await trio.sleep(for_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGCONT)

    async def _freeze_for_good(self, fault: p.FreezeForGood) -> None:
        site, slot = self._site, fault.slot
        if not self._expect.liveness:
            pid, _ = await self._up(slot)
            await self._freeze(pid, site.limits.liveness_s)
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return
        pid = await self._strike(fault, slot)
        self._stopped.add(pid)
        incarnation = site.incarnation
        os.killpg(pid, signal.SIGSTOP)
        bound_s = site.limits.liveness_s + 1 + SLACK_S
        with trio.move_on_after(bound_s):
            while await self._shows_up(slot, pid):  # noqa: ASYNC110 # another process: no event to wait for
                await trio.sleep(LOOK_S)
            return
        if site.incarnation == incarnation and table.alive(pid):
            self._oracle.violated(f"{slot}: an engine frozen for {bound_s} s is still shown as up")
            os.killpg(pid, signal.SIGKILL)

    async def _shows_up(self, slot: str, pid: int) -> bool:
        """Whether slotd says that the slot is up with this very engine."""
        view = await self._site.slot(slot)
        return view["pid"] == pid and SlotState(view["state"]) in UP

    async def _steal_port(self, fault: p.Fault, slot: str, after_s: float) -> None:
        """Let a stranger listen on the port that the slot's next engine has been given."""
        site = self._site
        before, _ = await self._up(slot)
        site.mood(slot, startup_delay_s=after_s)
        pid = await self._strike(fault, slot)
        os.killpg(pid, signal.SIGKILL)
        trouble = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._order_quietly, slot, "load")
            try:
                with trio.move_on_after(REACH_S):
                    await _squat(await self._next_address(slot, before), after_s + 1.0)
            except (SiteDown, OSError) as exc:
                trouble = str(exc)  # the engine was quicker, perhaps
        if trouble:
            raise Missed(trouble)

    async def _next_address(self, slot: str, before: int) -> str:
        """Where the engine that follows on the one with pid ``before`` is to listen."""
        while True:
            view = await self._site.slot(slot)
            if view["pid"] not in (None, before) and view["address"]:
                return str(view["address"])
            await trio.sleep(0.01)

    async def _turn(self, slot: str, **knobs: Any) -> None:
        """Turn knobs of the running fake engine. Raises :class:`Missed`."""
        await self._up(slot)
        engine = await self._site.fake(slot)
        if engine is None:
            raise Missed(f"{slot} has just gone down")
        with trio.move_on_after(3) as scope:
            try:
                await engine.set(**knobs)
            except Exception as exc:
                raise Missed(f"the engine cannot be reached: {exc}") from exc
        if scope.cancelled_caught:
            raise Missed("the engine does not answer")

    async def _misbehave(self, fault: p.Misbehave) -> None:
        normal: dict[str, Any] = {
            "garbage": "",
            "oversized_response_mb": 0,
            "cut_after_tokens": None,
            "close_without_terminator": False,
            "hang_after_tokens": None,
            "hang_requests": False,
            "hang_health": False,
            "slow_health_s": 0,
            "health_status": 200,
            "error_status": 0,
            "crash_after_tokens": None,
            "log_flood": 0,
        }
        over = self._oracle.spoil(fault)
        try:
            await self._turn(fault.slot, **{fault.knob: fault.value})
            await trio.sleep(fault.for_s)
            engine = await self._site.fake(fault.slot)
            if engine is not None:
                # It may have died of it, and be another one now.
                with suppress(Exception), trio.move_on_after(3):
                    await engine.set(**{fault.knob: normal[fault.knob]})
        finally:
            over()

    # --- operators ------------------------------------------------------------------------------

    async def _order(self, slot: str, verb: str, model: str = "") -> None:
        """An operator's command, answered within the slot's own bounds."""
        lim = self._site.limits
        bound_s = lim.ready_s + lim.drain_s + lim.stop_s + 2 * lim.kill_s + lim.queue_s + 10
        reply = await self._site.call(
            "POST", f"/api/slots/{slot}/{verb}", {"model": model} if model else None, timeout_s=bound_s
        )
        if reply.status != 200:
            code = reply.document["error"]["code"]
            if code.startswith("internal."):
                self._oracle.violated(f"{verb} {slot}: {reply.document['error']}")

    async def _order_quietly(self, slot: str, verb: str) -> None:
        with suppress(SiteDown):
            await self._order(slot, verb)

    async def _reload(self, fault: p.Reload) -> None:
        if not self._expect.reload:
            raise Missed("reload is not expected to work")
        site = self._site
        self._edits += 1
        try:
            match fault.change:
                case "valid":
                    site.edit(fault.slot, priority=40 + self._edits % 20, env={"EDITION": str(self._edits)})
                case "invalid":
                    site.write_config(broken="\n[slots.broken]\ntype = 'nothing'\n")
                case "none":
                    site.write_config()
            if fault.by == "signal":
                os.kill(site.pid, signal.SIGHUP)
                await trio.sleep(0.5)
                return
            reply = await site.call("POST", "/api/config/reload", timeout_s=30)
            right = 400 if fault.change == "invalid" else 200
            if reply.status != right:
                self._oracle.violated(f"reload ({fault.change}): {reply.status} {reply.document}")
        finally:
            site.write_config()

    # --- slotd and its disk ------------------------------------------------------------------------

    async def _fill_disk(self, for_s: float) -> None:
        site, incarnation = self._site, self._site.incarnation
        site.limit_files(0)
        try:
            await trio.sleep(for_s)
        finally:
            if site.is_up and site.incarnation == incarnation:
                site.limit_files(-1)

    async def _break_slotd(self, how: str) -> None:
        site, oracle = self._site, self._oracle
        if not site.is_up:
            raise Missed("slotd is down already")
        up = oracle.to_be_restored()
        if how == "kill":
            oracle.slotd_wrote(await site.kill())
        else:
            code, lines = await site.stop()
            oracle.slotd_wrote(lines)
            if code != 0:
                oracle.violated(f"SIGTERM: slotd ended with {code} (None: not in time)")
        await self._all_gone()
        oracle.slotd_started()
        oracle.restarts_s.append(await site.start())
        if self._expect.restore and how == "kill":
            await self._restored(up)

    async def _all_gone(self) -> None:
        """Nothing that the ended slotd had started lives on."""
        began = time.monotonic()
        while left := table.look(self._site.mark):
            if time.monotonic() - began > GUARDIAN_S + SLACK_S:
                self._oracle.violated(f"processes outlived slotd by {GUARDIAN_S} s: {list(left.values())}")
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            await trio.sleep(LOOK_S)
        self._oracle.swept_s.append(time.monotonic() - began)

    async def _restored(self, up: set[str]) -> None:
        """What was up is loaded again, or waits for memory, without anybody asking."""
        with trio.move_on_after(2 * SLACK_S):
            while up:
                for name in tuple(up):
                    view = await self._site.slot(name)
                    if view["state"] != SlotState.OFFLINE or view["blocked"]:
                        up.discard(name)
                await trio.sleep(LOOK_S)
        if up:
            self._oracle.violated(f"slots {sorted(up)} were up when slotd died, and are not loaded again")


async def _squat(address: str, for_s: float) -> None:
    """Listen on a port that somebody else has been promised. Raises OSError if it is taken."""
    host, _, port = address.rpartition(":")
    with socket.socket() as stranger:
        stranger.bind((host, int(port)))
        stranger.listen()
        stranger.setblocking(False)
        with trio.move_on_after(for_s):
            await _answer_as_a_stranger(stranger)


async def _answer_as_a_stranger(listener: socket.socket) -> None:
    """Say yes to everything, as a server that has nothing to do with slotd may."""
    server = trio.socket.from_stdlib_socket(listener.dup())
    with server:
        while True:
            conn, _ = await server.accept()
            with conn, suppress(OSError), trio.move_on_after(0.5):
                await conn.recv(4096)
                body = b'{"status":"ok","object":"list","data":[{"id":"stranger","object":"model"}]}'
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                await conn.send(head + b"content-length: %d\r\n\r\n" % len(body) + body)
