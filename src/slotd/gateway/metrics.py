"""Prometheus metrics: counters fed by finished requests, gauges read from snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
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


class Metrics:
    """All of ``/metrics``. Reading it does no I/O, asks no actor and wakes no slot."""

    def __init__(self, snapshots: Callable[[], Mapping[str, SlotSnapshot]], live: Callable[[], int]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_SlotGauges(snapshots, live))
        labels = ["target", "path", "outcome"]
        self._requests = Counter("slotd_requests", "Finished requests", labels, registry=self._registry)
        self._tokens = Counter(
            "slotd_tokens", "Tokens of finished requests", ["target", "kind"], registry=self._registry
        )
        by_target = ["target"]
        self._wait = Histogram(
            "slotd_wait_seconds", "Time to a lease", by_target, registry=self._registry, buckets=_BUCKETS
        )
        self._first = Histogram(
            "slotd_first_byte_seconds",
            "Time to the first byte",
            by_target,
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._total = Histogram(
            "slotd_request_seconds",
            "Time to the last byte",
            by_target,
            registry=self._registry,
            buckets=_BUCKETS,
        )

        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Any] = {}

    def count(self, record: RequestRecord) -> None:
        """Account for a finished request."""
        target = record.target or "none"
        self._child(self._requests, target, record.path, record.error or record.outcome).inc()
        # Those of an omni chat are counted with its turns.
        if target != TARGET:
            if record.tokens_in:
                self._child(self._tokens, target, "in").inc(record.tokens_in)
            if record.tokens_out:
                self._child(self._tokens, target, "out").inc(record.tokens_out)
        if record.wait_s is not None:
            self._child(self._wait, target).observe(record.wait_s)
        if record.first_byte_s is not None:
            self._child(self._first, target).observe(record.first_byte_s)
        if record.total_s is not None:
            self._child(self._total, target).observe(record.total_s)

    def _child(self, metric: Counter | Histogram, *labels: str) -> Any:
        """The library's own look-up costs more than counting. As many as targets, paths and outcomes."""
        child = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return child

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
