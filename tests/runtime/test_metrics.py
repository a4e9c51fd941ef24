"""Metrics: every one that the code counts is declared, with its labels."""

import re
from collections.abc import Iterator

import pytest

from config.packages import ROOT
from runtime.metrics import FAMILIES, Histogram, Metrics

_USE = re.compile(r"""\b_?(?:count|gauge|histogram)\(\s*\n?\s*"(\w+)"(?!\))""")


def uses() -> Iterator[tuple[str, str]]:
    for layer in ("runtime", "gateway", "transports", "services", "config"):
        for path in (ROOT / layer).rglob("*.py"):
            if path.name != "metrics.py":
                for name in _USE.findall(path.read_text(encoding="utf-8")):
                    yield str(path.relative_to(ROOT)), name


def test_every_metric_that_the_code_uses_is_declared() -> None:
    used = list(uses())
    assert len(used) > 40
    assert [(path, name) for path, name in used if name not in FAMILIES] == []


def test_names_follow_prometheus() -> None:
    for name, family in FAMILIES.items():
        assert name.endswith("_total") == (family.kind == "counter"), name
        assert family.help.endswith("."), name
        assert bool(family.buckets) == (family.kind == "histogram"), name


def test_counters_begin_at_zero() -> None:
    metrics = Metrics()
    metrics.begin(service="wallet")
    series = {name: values for name, _, values in metrics.families()}
    assert series["links_lost_total"] == {(): 0}
    assert series["incidents_total"] == {(("service", "wallet"),): 0}


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (9.0, 2)])
def test_a_value_is_in_the_bucket_whose_bound_it_does_not_exceed(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value, 3)
    assert histogram.counts == [3 if place == bucket else 0 for place in range(3)]
    assert (histogram.count, histogram.sum) == (3, value * 3)


def test_a_value_can_be_read_back() -> None:
    metrics = Metrics()
    metrics.count("retries_total", 2, service="wallet")
    metrics.gauge("followers", lambda: 3)
    metrics.histogram("event_loop_lag_seconds").observe(0.1)
    assert metrics.value("retries_total", service="wallet") == 2
    assert metrics.value("retries_total", service="rides") == 0
    assert (metrics.value("followers"), metrics.value("event_loop_lag_seconds")) == (3, 1)
