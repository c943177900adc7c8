from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import LABEL_VALUES_MAX, Metrics


def used() -> Metrics:
    metrics = Metrics()
    metrics.cycles.inc()
    metrics.cycle_seconds.observe(0.02)
    metrics.ledger_commit_seconds.observe(0.001)
    metrics.equity_usd.set(100_000)
    metrics.drawdown_ratio.set(0.01)
    metrics.gross_exposure_ratio.set(0.4)
    metrics.halted.set(0)
    metrics.ready.set(1)
    metrics.decided("hold", "target_held")
    metrics.abstained("dqn", "warming_up")
    metrics.order("accepted")
    metrics.filled("buy")
    metrics.rejected("insufficient_buying_power")
    metrics.unknown_resolved("not_placed")
    metrics.missed_job("cycle")
    metrics.incident("divergence")
    metrics.data_age("SPY", 30.0)
    metrics.notified("sent")
    metrics.watch_ages(lambda: {"loop": 0.5})
    metrics.watch_llm(lambda: {"asked": 3, "llm_timeout": 1})
    return metrics


def families(metrics: Metrics) -> dict[str, str]:
    return {f.name: f.type for f in text_string_to_metric_families(metrics.exposition().decode())}


def test_every_name_is_prefixed_and_carries_a_base_unit() -> None:
    ours = {name for name in families(used()) if not name.startswith("process_")}
    assert ours
    unprefixed = {name for name in ours if not re.fullmatch(r"tandem_[a-z]+(_[a-z]+)*", name)}
    odd_units = {name for name in ours if re.search(r"_(ms|millis|minutes|hours|percent|pct)$", name)}
    assert (unprefixed, odd_units) == (set(), set())


def test_every_counter_is_exported_with_total() -> None:
    metrics = used()
    text = metrics.exposition().decode()
    counters = [name for name, kind in families(metrics).items() if kind == "counter"]
    assert counters
    assert [name for name in counters if f"\n{name}_total" not in text] == []


def test_every_family_has_a_help_text() -> None:
    bare = [f.name for f in text_string_to_metric_families(used().exposition().decode()) if not f.documentation]
    assert bare == []


@pytest.mark.parametrize(
    "line",
    [
        "tandem_cycles_total 1.0",
        'tandem_decisions_total{action="hold",reason="target_held"} 1.0',
        'tandem_abstentions_total{reason="warming_up",strategy="dqn"} 1.0',
        'tandem_orders_total{outcome="accepted"} 1.0',
        'tandem_fills_total{side="buy"} 1.0',
        'tandem_rejects_total{code="insufficient_buying_power"} 1.0',
        'tandem_unknown_orders_resolved_total{resolution="not_placed"} 1.0',
        'tandem_missed_jobs_total{job="cycle"} 1.0',
        'tandem_incidents_total{kind="divergence"} 1.0',
        'tandem_data_age_seconds{symbol="SPY"} 30.0',
        'tandem_probe_age_seconds{probe="loop"} 0.5',
        "tandem_equity_usd 100000.0",
    ],
)
def test_what_was_counted_is_exported(line: str) -> None:
    assert line in used().exposition().decode().splitlines()


def test_a_count_of_zero_is_exported_before_anything_happened() -> None:
    assert "tandem_cycles_total 0.0" in Metrics().exposition().decode().splitlines()


def test_two_daemons_in_one_process_share_no_number() -> None:
    first, second = Metrics(), Metrics()
    first.cycles.inc()
    assert "tandem_cycles_total 0.0" in second.exposition().decode().splitlines()


def test_a_venue_that_invents_codes_cannot_grow_the_number_of_series() -> None:
    metrics = Metrics()
    for number in range(LABEL_VALUES_MAX + 50):
        metrics.rejected(f"code_{number}")
    lines = [line for line in metrics.exposition().decode().splitlines() if line.startswith("tandem_rejects_total{")]
    assert len(lines) == LABEL_VALUES_MAX + 1
    assert 'tandem_rejects_total{code="other"} 50.0' in lines
