"""The picture of the console: rates, percentiles, and what is kept."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.console.picture import Picture
from runtime.metrics import SECONDS, Histogram
from runtime.node.observation import LogLine, Observe, Observed
from runtime.recorder import Edge, RecordedSpan
from runtime.tracing import Kind


def edge(seconds: list[float], errors: int = 0, caller: str = "rides", name: str = "wallet.Hold") -> Edge:
    histogram = Histogram(SECONDS)
    for value in seconds:
        histogram.observe(value)
    return Edge(caller, "wallet", name, "call", histogram.count, errors, histogram.sum, tuple(histogram.counts))


def span(
    trace: str, id: str = "a", *, parent: str = "", began: float = 100.0, error: str = "", kind: Kind = "SERVER", service: str = "wallet"
) -> RecordedSpan:  # fmt: skip
    return RecordedSpan(
        trace, id, parent, service, "n1", "wallet.Hold", kind, began, 0.5, error, (("callboard.request_id", f"r{trace}"),)
    )


def observed(
    *edges: Edge, recording: str = "one", spans: tuple[RecordedSpan, ...] = (), logs: tuple[LogLine, ...] = ()
) -> Observed:
    return Observed(recording, edges, spans, 7, 0, logs, 9)


def begun(*nodes: str) -> Picture:
    """Return the picture of nodes that have begun to record."""
    picture = Picture()
    picture.tick({node: observed() for node in nodes or ("n1",)}, 1)
    picture._seconds.clear()  # pyright: ignore[reportPrivateUsage]
    return picture


def test_rates_count_what_is_new_since_the_tick_before_and_only_ten_ticks() -> None:
    picture = begun()
    picture.tick({"n1": observed(edge([0.001] * 100, errors=10))}, 1)
    assert picture.flows()[0]["rate"] == 100
    picture.tick({"n1": observed(edge([0.001] * 150, errors=10))}, 1)
    [flow] = picture.flows()
    assert (flow["caller"], flow["service"], flow["kind"], flow["rate"], flow["errors"]) == ("rides", "wallet", "call", 75, 5)
    assert picture.services()["wallet"]["rate"] == 75
    for _ in range(9):
        picture.tick({"n1": observed(edge([0.001] * 150, errors=10))}, 1)
    assert picture.flows()[0]["rate"] == 5, "fifty in the last ten ticks"
    picture.tick({"n1": observed(edge([0.001] * 150, errors=10))}, 1)
    assert picture.flows() == []


def test_a_recording_that_runs_already_or_anew_counts_from_where_it_is_first_seen() -> None:
    picture = begun()
    picture.tick({"n1": observed(edge([0.001] * 3000), recording="another")}, 1)
    assert picture.flows() == [], "it may run for an hour, for another gateway"
    picture.tick({"n1": observed(edge([0.001] * 3007), recording="another")}, 1)
    assert picture.flows()[0]["rate"] == 7


def test_a_node_that_misses_a_tick_has_its_messages_and_spans_counted_once() -> None:
    picture = begun("n1", "n2")
    picture.tick({"n1": observed(edge([0.001] * 4)), "n2": observed(edge([0.001] * 6))}, 1)
    assert picture.flows()[0]["rate"] == 10
    picture.tick({"n1": observed(edge([0.001] * 4))}, 1)
    assert picture.question("n2") == Observe("one", 7, 9)
    picture.tick({"n1": observed(edge([0.001] * 4)), "n2": observed(edge([0.001] * 8), spans=(span("t1"), span("t1")))}, 1)
    assert picture.flows()[0]["rate"] == 4, "twelve in three seconds"
    assert len(picture.trace("t1")) == 1


def test_a_tick_that_took_longer_has_no_higher_rate() -> None:
    picture = begun()
    picture.tick({"n1": observed(edge([0.001] * 500))}, 5)
    assert picture.flows()[0]["rate"] == 100


def test_an_answer_of_another_version_spoils_nothing() -> None:
    picture = begun("n1", "n2")
    strange = Edge("rides", "wallet", "wallet.Hold", "call", 3, 0, 1.0, (1, 2))
    picture.tick({"n1": observed(edge([0.001] * 4)), "n2": observed(strange)}, 1)
    assert picture.flows()[0]["rate"] == 4


def test_who_refreshes_keys_is_not_shown() -> None:
    picture = begun()
    picture.tick({"n1": observed(edge([0.001], caller="runtime"))}, 1)
    assert picture.flows() == []


@given(st.lists(st.floats(0.00001, 40.0), min_size=1, max_size=60))
def test_a_percentile_lies_in_the_bucket_of_its_value(seconds: list[float]) -> None:
    picture = begun()
    picture.tick({"n1": observed(edge(seconds))}, 1)
    [flow] = picture.flows()
    for share, found in ((0.5, flow["p50"]), (0.99, flow["p99"])):
        exact = sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)]
        below = sorted(seconds)[max(int(share * len(seconds)) - 1, 0)]
        lower = max((bound for bound in SECONDS if bound < below), default=0.0)
        upper = min((bound for bound in SECONDS if bound >= exact), default=SECONDS[-1])
        assert lower * 1000 <= found + 1e-3
        assert found <= upper * 1000 + 1e-3


def test_a_trace_is_told_again_when_it_has_grown_and_only_so_many_are_kept() -> None:
    picture = Picture()
    picture.tick({"n1": observed(spans=(span("t1", "b", parent="a", began=100.2, error="NotFound"),))}, 1)
    assert [one["name"] for one in picture.new_traces()] == ["wallet.Hold"]
    picture.tick({"n1": observed(spans=(span("t1", "a", began=100.0, service="gateway"),))}, 1)
    [summary] = picture.new_traces()
    assert (summary["services"], summary["spans"], summary["error"], summary["ms"], summary["request"]) == (
        ["gateway", "wallet"], 2, "NotFound", 700, "rt1",
    )  # fmt: skip
    assert [one.id for one in picture.trace("t1")] == ["a", "b"]
    assert picture.new_traces() == []
    picture.tick({"n1": observed(spans=tuple(span(f"x{number}") for number in range(300)))}, 1)
    assert len(picture.traces()) == 300
    assert picture.trace("t1") == []
    picture.tick({"n1": observed(spans=tuple(span("x299", f"{number}") for number in range(500)))}, 1)
    assert len(picture.trace("x299")) == 200


def test_a_timer_that_has_caused_nothing_is_no_trace_unless_it_failed() -> None:
    picture = Picture()
    picture.tick({"n1": observed(spans=(span("t1", kind="INTERNAL"), span("t2", kind="INTERNAL", error="KeyError")))}, 1)
    assert [one["trace"] for one in picture.traces()] == ["t2"]


def test_under_load_fewer_traces_are_asked_for_and_all_again_afterwards() -> None:
    picture = Picture()
    many = {f"n{node}": observed(spans=tuple(span(f"t{number}") for number in range(250))) for node in range(3)}
    for _ in range(4):
        picture.tick(many, 1)
    assert picture.one_in == 16
    for _ in range(4):
        picture.tick({}, 1)
    assert picture.one_in == 1


def test_failures_do_not_drive_out_the_traces_that_succeed() -> None:
    picture = Picture()
    for number in range(4):
        picture.tick({"n1": observed(spans=tuple(span(f"t{number}", str(at), error="KeyError") for at in range(250)))}, 1)
    assert picture.one_in == 1


def test_traces_by_which_nodes_keep_their_keys_are_not_shown() -> None:
    picture = Picture()
    hidden = RecordedSpan("t1", "a", "", "auth", "n1", "auth.KeySet", "SERVER", 1.0, 0.1, "", (("callboard.caller", "runtime"),))
    picture.tick({"n1": observed(spans=(span("t1", "b", parent="a"), hidden))}, 1)
    assert picture.new_traces() == picture.traces() == []


def test_logs_are_found_by_trace_and_bounded() -> None:
    picture = Picture()
    lines = tuple(
        LogLine(1.0, "info", "callboard.wallet", "wallet", "n1", f"r{number % 2}", f"t{number % 4}", str(number))
        for number in range(3000)
    )
    picture.tick({"n1": observed(logs=lines)}, 1)
    assert len(picture.logs()) == 2000
    assert {line.trace for line in picture.logs(trace="t2")} == {"t2"}
    assert len(picture.new_logs()) == 3000
    assert picture.new_logs() == []
