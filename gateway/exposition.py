"""The metrics of a node as text for Prometheus and what reads its formats (text format 0.0.4, and OpenMetrics 1.0)."""

from collections.abc import Iterable, Iterator
from hmac import compare_digest

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway.console.requests import require_operator
from gateway.settings import GatewaySettings
from runtime.metrics import Family, Histogram, Labels, Metrics
from runtime.node.proxy import Proxy

_PREFIX = "callboard_"
_OF_PROCESSES = "process_"
_OURS = ("process_open_fds", "process_max_fds")
"""Metrics of processes that the node has on every platform."""


class Exposition:
    """Renders the metrics of a node, and of its process."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_NodeCollector(metrics))
        self._registry.register(_Without(ProcessCollector(registry=None), _OURS))
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[str, bytes]:
        """Return the media type and the text, in the format that an `Accept` field asks for, or in that which every collector reads."""
        try:
            encoder, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the field is malformed
            encoder, media_type = choose_encoder("")
        return media_type, encoder(self._registry)


async def require_collector(proxy: Proxy, settings: GatewaySettings, headers: dict[bytes, bytes]) -> None:
    """Check that a request may read the metrics: with `metrics_token`, or the access token of an operator.

    Raises:
        Unauthenticated: if it has neither.
        Forbidden: if the user is no operator.
    """
    if settings.metrics == "public":
        return
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    expected = settings.metrics_token
    if expected is not None and scheme.lower() == b"bearer" and compare_digest(given.strip(b" "), str(expected).encode()):
        return
    await require_operator(proxy, headers)


class _NodeCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for name, family, series in self._metrics.families():
            yield _metric(name if name.startswith(_OF_PROCESSES) else f"{_PREFIX}{name}", family, series)


class _Without(Collector):
    """What another collector finds, without some of it."""

    def __init__(self, collector: Collector, names: tuple[str, ...]) -> None:
        self._collector = collector
        self._names = names

    def collect(self) -> Iterable[Metric]:
        return [metric for metric in self._collector.collect() if metric.name not in self._names]


def _metric(name: str, family: Family, series: dict[Labels, float | Histogram]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, value in sorted(series.items(), key=lambda item: item[0]):
            assert isinstance(value, Histogram)
            histogram.add_metric([text for _, text in labels], _buckets(value), value.sum)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    found = kind(name, family.help, labels=family.labels)
    for labels, value in sorted(series.items(), key=lambda item: item[0]):
        assert not isinstance(value, Histogram)
        found.add_metric([text for _, text in labels], value)
    return found


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the number of values up to each bound."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(repr, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        found.append((bound, total))
    return found
