"""The port pool: one holder each, strangers passed over, the longest rested first."""

from __future__ import annotations

import socket

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slotd.errors import SpawnFailed
from slotd.process import ports as ports_module
from slotd.process.ports import PortPool, PortsExhausted, can_bind

RANGE = range(100, 106)


class PoolMachine(RuleBasedStateMachine):
    """Any order of takes and returns while strangers come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(ports_module, "can_bind", self.can_bind)
        self.strangers: set[int] = set()
        self.resting: set[int] = set()
        self.held: list[int] = []
        self.rested: dict[int, int] = dict.fromkeys(RANGE, 0)
        self.now = 0
        self.pool = PortPool(RANGE[0], RANGE[-1])

    def can_bind(self, host: str, port: int, *, reuse: bool = False) -> bool:
        return port not in self.strangers and (reuse or port not in self.resting)

    def teardown(self) -> None:
        self.patch.undo()

    @rule()
    def take(self) -> None:
        free = set(RANGE) - set(self.held) - self.strangers
        if not free:
            with pytest.raises(PortsExhausted, match=f"{len(self.held)} held"):
                self.pool.take()
            return
        port = self.pool.take()
        assert port in free
        assert port not in self.resting or free <= self.resting
        self.held.append(port)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(self.held))
        self.held.remove(port)
        self.pool.give_back(port)

    @rule(ports=st.sets(st.sampled_from(RANGE)))
    def strangers_change(self, ports: set[int]) -> None:
        self.strangers = ports

    @rule(ports=st.sets(st.sampled_from(RANGE)))
    def time_waits_change(self, ports: set[int]) -> None:
        self.resting = ports

    @rule(port=st.sampled_from(RANGE))
    def give_back_what_is_not_held(self, port: int) -> None:
        if port not in self.held:
            with pytest.raises(ValueError, match="not held"):
                self.pool.give_back(port)

    @invariant()
    def one_holder_each(self) -> None:
        assert self.pool.taken == frozenset(self.held)
        assert len(self.held) == len(set(self.held))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_released_port_comes_last(ports: PortPool) -> None:
    first = ports.take()
    ports.give_back(first)
    seen = {ports.take() for _ in range(10)}
    assert first not in seen


def test_a_port_that_somebody_listens_on_is_passed_over() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        pool = PortPool(port, port)
        with pytest.raises(SpawnFailed, match="by other programs"):
            pool.take()
    assert pool.take() == port


def test_time_wait_is_second_choice_but_usable() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # closes first, so TIME_WAIT stays on the server's side
        client.close()
    assert not can_bind("127.0.0.1", port)
    assert PortPool(port, port).take() == port


@pytest.mark.parametrize(("first", "last"), [(0, 10), (10, 9), (1, 65536)])
def test_a_range_that_is_none_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="not a port range"):
        PortPool(first, last)
