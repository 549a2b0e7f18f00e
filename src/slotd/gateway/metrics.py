"""Prometheus metrics: counters fed by finished requests, gauges read from snapshots."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from slotd.exchange.record import RequestRecord
from slotd.omni.omni import TARGET
from slotd.slot.state import SlotSnapshot, SlotState

__all__ = ["Metrics"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _SlotGauges(Collector):
    def __init__(self, snapshots: Callable[[], Mapping[str, SlotSnapshot]], live: Callable[[], int]) -> None:
        self._snapshots = snapshots
        self._live = live

    def collect(self) -> Iterator[Metric]:
        slots = self._snapshots().values()
        state = GaugeMetricFamily(
            "slotd_slot_state", "1 for the state a slot is in", labels=["slot", "state"]
        )
        leases = GaugeMetricFamily("slotd_slot_leases", "Requests a slot is serving", labels=["slot"])
        queued = GaugeMetricFamily("slotd_slot_queued", "Requests waiting for a slot", labels=["slot"])
        starts = GaugeMetricFamily("slotd_slot_starts", "Engine starts since slotd began", labels=["slot"])
        load = GaugeMetricFamily("slotd_slot_load_seconds", "Duration of the last load", labels=["slot"])
        failures = GaugeMetricFamily(
            "slotd_slot_failures",
            "Failures in a row; a slot is left alone for a while from the second on",
            labels=["slot"],
        )
        memory = GaugeMetricFamily(
            "slotd_slot_memory_bytes",
            "What an engine takes up, measured or reserved",
            labels=["slot", "kind"],
        )
        for s in slots:
            for kind, mb in (("ram", s.ram_mb), ("gpu", s.gpu_mb)):
                if mb is not None:
                    memory.add_metric([s.name, kind], mb * 1024.0 * 1024.0)
            failures.add_metric([s.name], s.failures)
            for each in SlotState:
                state.add_metric([s.name, each.value], 1.0 if s.state is each else 0.0)
            leases.add_metric([s.name], s.leases)
            queued.add_metric([s.name], s.queued)
            starts.add_metric([s.name], s.starts)
            if s.load_s is not None:
                load.add_metric([s.name], s.load_s)
        live = GaugeMetricFamily("slotd_requests_live", "Requests under way", value=self._live())
        yield from (state, leases, queued, starts, load, failures, memory, live)


class _Spread:
    """How values are distributed: what a Prometheus histogram is made of."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(_BUCKETS, value)] += 1
        self.total += value

    @property
    def any(self) -> bool:
        """Whether a value has been seen."""
        return any(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, and how many values are not above them."""
        bounds = [*(str(float(bound)) for bound in _BUCKETS), "+Inf"]
        return [(bound, float(sum(self.counts[: n + 1]))) for n, bound in enumerate(bounds)]


class _Tally:
    """What the finished requests of one target add up to. ``finished``: how many, by path and outcome."""

    __slots__ = ("finished", "first", "tokens_in", "tokens_out", "total", "wait")

    def __init__(self) -> None:
        self.finished: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.tokens_in = self.tokens_out = 0
        self.wait, self.first, self.total = _Spread(), _Spread(), _Spread()


class _Requests(Collector):
    """What finished requests add up to.

    Plain numbers that become metrics when somebody reads them: the library's own
    counters take a lock, and a tenth of the time that a small request takes.
    """

    def __init__(self) -> None:
        self._targets: defaultdict[str, _Tally] = defaultdict(_Tally)

    def count(self, record: RequestRecord) -> None:
        tally = self._targets[record.target or "none"]
        tally.finished[record.path, record.error or record.outcome] += 1
        # Those of an omni chat are counted with its turns.
        if record.target != TARGET:
            tally.tokens_in += record.tokens_in or 0
            tally.tokens_out += record.tokens_out or 0
        if record.wait_s is not None:
            tally.wait.observe(record.wait_s)
        if record.first_byte_s is not None:
            tally.first.observe(record.first_byte_s)
        if record.total_s is not None:
            tally.total.observe(record.total_s)

    def collect(self) -> Iterator[Metric]:
        finished = CounterMetricFamily(
            "slotd_requests", "Finished requests", labels=["target", "path", "outcome"]
        )
        for target, tally in self._targets.items():
            for (path, outcome), number in tally.finished.items():
                finished.add_metric([target, path, outcome], number)
        yield finished
        tokens = CounterMetricFamily("slotd_tokens", "Tokens of finished requests", labels=["target", "kind"])
        for target, tally in self._targets.items():
            for kind, number in (("in", tally.tokens_in), ("out", tally.tokens_out)):
                if number:
                    tokens.add_metric([target, kind], number)
        yield tokens
        for name, text, attribute in (
            ("slotd_wait_seconds", "Time to a lease", "wait"),
            ("slotd_first_byte_seconds", "Time to the first byte", "first"),
            ("slotd_request_seconds", "Time to the last byte", "total"),
        ):
            histogram = HistogramMetricFamily(name, text, labels=["target"])
            for target, tally in self._targets.items():
                spread: _Spread = getattr(tally, attribute)
                if spread.any:
                    histogram.add_metric([target], spread.buckets(), spread.total)
            yield histogram


class Metrics:
    """All of ``/metrics``. Reading it does no I/O, asks no actor and wakes no slot."""

    def __init__(self, snapshots: Callable[[], Mapping[str, SlotSnapshot]], live: Callable[[], int]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_SlotGauges(snapshots, live))
        self._requests = _Requests()
        self._registry.register(self._requests)

    def count(self, record: RequestRecord) -> None:
        """Account for a finished request."""
        self._requests.count(record)

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
