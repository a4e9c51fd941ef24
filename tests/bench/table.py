"""The table of `make bench`: which figures are compared with which others."""

from runtime import Struct
from tests.bench.results import Results
from tests.bench.samples import Spread, ratios

OURS, BEFORE, MOLECULER, FASTAPI = "ours", "before", "Moleculer", "FastAPI"


class Row(Struct):
    """A comparison within one run.

    Attributes:
        scenario: the scenario, as readers see it.
        figure: the name of our figure.
        side: whose figure it is compared with.
        other: the name of that figure.
        target: the ratio to reach at least; with `less`, at most.
        less: whether less is better.
    """

    scenario: str
    figure: str
    side: str
    other: str
    target: float | None = None
    less: bool = False


class Line(Struct):
    """A row with its figures. A side that was not measured has None."""

    row: Row
    ours: float | None
    unit: str
    other: float | None
    ratio: Spread | None

    @property
    def advantage(self) -> float | None:
        """By which factor ours is better: above 1 where it is, whether more or less counts."""
        if self.ratio is None:
            return None
        return 1 / self.ratio.median if self.row.less else self.ratio.median

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one, or without a measurement."""
        target = self.row.target
        if target is None or self.ratio is None:
            return None
        return self.ratio.median <= target if self.row.less else self.ratio.median >= target


def _before(scenario: str, figure: str, target: float | None = None, *, less: bool = False) -> Row:
    return Row(scenario, figure, BEFORE, figure, target, less)


ROWS = (
    Row("in process, zero-copy", "local_c1", MOLECULER, "local_c1", 0.5),
    _before("in process, zero-copy", "local_c1"),
    _before("in process, encoded and decoded", "local_serialized_c1"),
    _before("in process, asked by a handler", "handler_asks_c1", 1.7),
    _before("in process, the handler waits once", "handler_waits_c1", 3.0),
    Row("over MQTT, one at a time", "request_c1", MOLECULER, "request_c1", 1.2),
    Row("over MQTT, 64 at a time", "request_c64", MOLECULER, "request_c64", 1.2),
    _before("over MQTT, one at a time", "request_c1"),
    _before("over MQTT, 64 at a time", "request_c64"),
    _before("over MQTT, CPU time of the caller", "cpu_caller_c64", 0.65, less=True),
    _before("over MQTT, CPU time of the service", "cpu_service_c64", 0.65, less=True),
    Row("over MQTT, 4,096 at a time, of 256", "request_c4096", OURS, "request_c256", 0.95),
    Row("over MQTT, messages of 1 MB, of 100 kB", "message_1mb", OURS, "message_100kb", 1.0),
    Row("signals over MQTT", "events", MOLECULER, "events", 1.7),
    Row("gateway, with a token", "gateway", MOLECULER, "gateway", 1.2),
    Row("gateway before MQTT, with a token", "gateway_mqtt", MOLECULER, "gateway_mqtt", 1.0),
    _before("gateway, with a token", "gateway"),
    _before("gateway before MQTT, with a token", "gateway_mqtt"),
    Row("over HTTP, one at a time", "peers_c1", FASTAPI, "fastapi_c1", 1.0),
    Row("over HTTP, 64 at a time", "peers_c64", FASTAPI, "fastapi_c64", 1.0),
    _before("over HTTP, 64 at a time", "peers_c64"),
    _before("durable events, NORMAL, one caller", "durable_normal_c1"),
    _before("durable events, NORMAL, 64 callers", "durable_normal_c64", 3.0),
    _before("durable events, FULL, one caller", "durable_full_c1"),
    _before("durable events, FULL, 64 callers", "durable_full_c64"),
    Row("catch-up of 50,000 events, FULL, of NORMAL", "catch_up_full", OURS, "catch_up_normal", 0.8),
    _before("larger messages, in process, zero-copy", "wide_local_c1"),
    _before("larger messages, in process, encoded", "wide_local_serialized_c1"),
    _before("larger messages, over MQTT, 64 at a time", "wide_request_c64"),
    _before("memory of a node with six services", "memory_six_services", 0.9, less=True),
)
"""The rows, in the order of the page. A target is a ratio: of a row with `less`, at most, otherwise at least."""


def lines(results: Results) -> list[Line]:
    """Return the rows with what was measured."""
    return [_line(row, results) for row in ROWS]


def _line(row: Row, results: Results) -> Line:
    ours = results.figures.get(OURS, {}).get(row.figure)
    other = results.figures.get(row.side, {}).get(row.other)
    both = ours is not None and other is not None and len(ours.values) == len(other.values)
    return Line(
        row=row,
        ours=ours.spread.median if ours else None,
        unit=ours.unit if ours else "",
        other=other.spread.median if other else None,
        ratio=ratios(ours.values, other.values) if both and ours and other else None,
    )
