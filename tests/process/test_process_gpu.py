"""GPU memory through NVML, by a library of our own making: there may be no GPU here."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from slotd.process import gpu

MIB = 1 << 20


class NVMLError(Exception):
    """As the package raises it."""


@dataclass
class Card:
    free: int = 0
    total: int = 0
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    broken: bool = False


class FakeNvml(types.ModuleType):
    """``pynvml`` as far as slotd uses it."""

    def __init__(self, *cards: Card, init_fails: bool = False) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.init_fails = init_fails
        self.inits = 0

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.init_fails:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Card:
        if card.broken:
            raise NVMLError("GPU is lost")
        return card

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[types.SimpleNamespace]:
        return self._list(card, card.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[types.SimpleNamespace]:
        return self._list(card, card.graphics)

    def _list(self, card: Card, rows: list[tuple[int, int | None]]) -> list[types.SimpleNamespace]:
        if card.broken:
            raise NVMLError("GPU is lost")
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in rows]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[FakeNvml | None], None]]:
    def put(module: FakeNvml | None) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", module)
        gpu._devices.cache_clear()

    yield put
    gpu._devices.cache_clear()


Install = Callable[[FakeNvml | None], None]


def test_without_the_package_there_is_no_gpu(install: Install) -> None:
    install(None)
    assert not gpu.gpu_present()
    assert gpu.free_gpu_mb() is None
    assert gpu.gpu_mb_of([1]) == 0


def test_without_a_driver_there_is_no_gpu_and_it_is_asked_once(install: Install) -> None:
    nvml = FakeNvml(Card(), init_fails=True)
    install(nvml)
    assert not gpu.gpu_present()
    assert gpu.free_gpu_mb() is None
    assert gpu.gpu_mb_of([1]) == 0
    assert nvml.inits == 1


def test_a_driver_without_cards_is_no_gpu(install: Install) -> None:
    install(FakeNvml())
    assert not gpu.gpu_present()
    assert gpu.free_gpu_mb() is None


def test_memory_is_summed_over_the_cards(install: Install) -> None:
    nvml = FakeNvml(Card(free=3 * MIB, total=10 * MIB), Card(free=4 * MIB, total=20 * MIB))
    install(nvml)
    assert gpu.gpu_present()
    assert gpu.free_gpu_mb() == (7, 30)
    assert nvml.inits == 1


def test_what_processes_hold_is_summed_over_the_cards_and_no_others_count(install: Install) -> None:
    one = Card(compute=[(7, 100 * MIB), (8, 50 * MIB), (9, 1 * MIB)])
    two = Card(compute=[(7, 10 * MIB)])
    install(FakeNvml(one, two))
    assert gpu.gpu_mb_of({7, 8}) == 160
    assert gpu.gpu_mb_of({9}) == 1
    assert gpu.gpu_mb_of({1}) == 0
    assert gpu.gpu_mb_of(()) == 0


def test_who_computes_and_draws_counts_once(install: Install) -> None:
    install(FakeNvml(Card(compute=[(7, 90 * MIB)], graphics=[(7, 100 * MIB)])))
    assert gpu.gpu_mb_of([7]) == 100


def test_memory_that_is_not_known_counts_nothing(install: Install) -> None:
    install(FakeNvml(Card(compute=[(7, None)])))
    assert gpu.gpu_mb_of([7]) == 0


def test_a_lost_card_raises_nothing(install: Install) -> None:
    install(FakeNvml(Card(broken=True), Card(free=MIB, total=MIB, compute=[(7, MIB)])))
    assert gpu.free_gpu_mb() is None
    assert gpu.gpu_mb_of([7]) == 1


def test_a_library_without_the_functions_raises_nothing(install: Install) -> None:
    class Bare(FakeNvml):
        nvmlDeviceGetMemoryInfo = None  # type: ignore[assignment]  # an old version
        nvmlDeviceGetGraphicsRunningProcesses = None  # type: ignore[assignment]  # an old version

    install(Bare(Card(compute=[(7, MIB)])))
    assert gpu.gpu_present()
    assert gpu.free_gpu_mb() is None
    assert gpu.gpu_mb_of([7]) == 1
