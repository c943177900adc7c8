"""What the daemon counts, for Prometheus. Names follow its conventions: base units, `_total` on counters.

Every instance has a registry of its own, so two daemons in one process (simulation) never share a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

LABEL_VALUES_MAX = 100
"""Distinct values of a label whose words come from outside (a venue's codes); later ones are counted as `other`."""

_CYCLE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMMIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """The daemon's counters, gauges and histograms over one registry.

    Plain attributes where a metric has no labels (`metrics.cycles.inc()`), methods where it has, so that label
    names and their bounds stand here alone.
    """

    def __init__(self) -> None:
        """Create every series; unlabelled ones start at zero and are exported from the first scrape."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, which nobody reads
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self._labels = _BoundedLabels()

        self.cycles = Counter("tandem_cycles", "Bar closes decided on.", registry=registry)
        self.cycle_seconds = Histogram(
            "tandem_cycle_seconds",
            "From the start of a cycle to its last commit, wall time.",
            buckets=_CYCLE_BUCKETS_S,
            registry=registry,
        )
        self.ledger_commit_seconds = Histogram(
            "tandem_ledger_commit_seconds",
            "One commit of the ledger, wall time.",
            buckets=_COMMIT_BUCKETS_S,
            registry=registry,
        )
        self.equity_usd = Gauge("tandem_equity_usd", "Account equity at the last mark.", registry=registry)
        self.drawdown_ratio = Gauge(
            "tandem_drawdown_ratio", "Fall of equity from its highest, as a fraction of it.", registry=registry
        )
        self.gross_exposure_ratio = Gauge(
            "tandem_gross_exposure_ratio", "Sum of absolute position values over equity.", registry=registry
        )
        self.halted = Gauge("tandem_halted", "1 while the daemon is halted, else 0.", registry=registry)
        self.ready = Gauge("tandem_ready", "1 once the daemon has reconciled, else 0.", registry=registry)

        self._decisions = Counter(
            "tandem_decisions", "Decisions, HOLD included.", ["action", "reason"], registry=registry
        )
        self._abstentions = Counter(
            "tandem_abstentions",
            "Symbols on which a strategy had nothing to say.",
            ["strategy", "reason"],
            registry=registry,
        )
        self._orders = Counter("tandem_orders", "Wire attempts by their outcome.", ["outcome"], registry=registry)
        self._fills = Counter("tandem_fills", "Executions booked.", ["side"], registry=registry)
        self._rejects = Counter(
            "tandem_rejects", "Orders that the venue refused, by its code.", ["code"], registry=registry
        )
        self._unknown_resolved = Counter(
            "tandem_unknown_orders_resolved",
            "Orders of unknown outcome, by what they turned out to be.",
            ["resolution"],
            registry=registry,
        )
        self._missed_jobs = Counter(
            "tandem_missed_jobs", "Scheduled jobs that ran too late to be run.", ["job"], registry=registry
        )
        self._incidents = Counter("tandem_incidents", "Incidents opened, by kind.", ["kind"], registry=registry)
        self._notifications = Counter(
            "tandem_notifications", "Messages to people by what became of them.", ["outcome"], registry=registry
        )
        self._data_age = Gauge(
            "tandem_data_age_seconds", "Venue time since the close of the newest bar.", ["symbol"], registry=registry
        )
        self._data_ages: dict[str, Gauge] = {}

    def decided(self, action: str, reason: str, count: int = 1) -> None:
        """Count decisions by their action word and reason code."""
        self._decisions.labels(action=action, reason=reason).inc(count)

    def abstained(self, strategy: str, reason: str) -> None:
        """Count one abstention of a strategy."""
        self._abstentions.labels(strategy=strategy, reason=reason).inc()

    def order(self, outcome: str) -> None:
        """Count one wire attempt: `accepted`, `rejected` or `unknown`."""
        self._orders.labels(outcome=outcome).inc()

    def filled(self, side: str) -> None:
        """Count one execution."""
        self._fills.labels(side=side).inc()

    def rejected(self, code: str) -> None:
        """Count one refusal by the venue's code; the number of distinct codes is bounded."""
        self._rejects.labels(code=self._labels.bounded("code", code)).inc()

    def unknown_resolved(self, resolution: str) -> None:
        """Count one order of unknown outcome that is known now (`accepted`, `filled`, `not_placed`, ...)."""
        self._unknown_resolved.labels(resolution=resolution).inc()

    def missed_job(self, job: str) -> None:
        """Count one job that was missed; `job` is its kind, not its time."""
        self._missed_jobs.labels(job=self._labels.bounded("job", job)).inc()

    def incident(self, kind: str) -> None:
        """Count one incident."""
        self._incidents.labels(kind=self._labels.bounded("kind", kind)).inc()

    def notified(self, outcome: str, count: int = 1) -> None:
        """Count messages: `sent`, `failed` (an attempt, made again) or `dropped` (never delivered)."""
        self._notifications.labels(outcome=outcome).inc(count)

    def data_age(self, symbol: str, age_s: float) -> None:
        """Set how old a symbol's newest bar is, in seconds of venue time."""
        gauge = self._data_ages.get(symbol)
        if gauge is None:  # looking a label up takes longer than setting it
            gauge = self._data_ages[symbol] = self._data_age.labels(symbol=symbol)
        gauge.set(age_s)

    def watch_ages(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Export `tandem_probe_age_seconds{probe}`, read from `ages` at every scrape."""
        self.registry.register(_ProbeAges(ages))

    def watch_llm(self, counters: Callable[[], Mapping[str, int]]) -> None:
        """Export `tandem_llm_total{event}`, read from `counters` at every scrape."""
        self.registry.register(_LlmCounters(counters))

    def exposition(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self.registry)


class _BoundedLabels:
    """Lets at most `LABEL_VALUES_MAX` distinct values of a label through."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}
        self._lock = Lock()

    def bounded(self, label: str, value: str) -> str:
        with self._lock:
            seen = self._seen.setdefault(label, set())
            if value in seen:
                return value
            if len(seen) >= LABEL_VALUES_MAX:
                return "other"
            seen.add(value)
            return value


class _ProbeAges(Collector):
    def __init__(self, ages: Callable[[], Mapping[str, float]]) -> None:
        self._ages = ages

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "tandem_probe_age_seconds", "Wall time since a probe last made progress.", labels=["probe"]
        )
        for name, age_s in self._ages().items():
            family.add_metric([name], age_s)
        yield family


class _LlmCounters(Collector):
    def __init__(self, counters: Callable[[], Mapping[str, int]]) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "tandem_llm", "What became of questions to the language model, by event or reason.", labels=["event"]
        )
        for name, count in self._counters().items():
            family.add_metric([name], count)
        yield family
