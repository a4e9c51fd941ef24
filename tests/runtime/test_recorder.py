"""The recorder: what it counts and keeps of the spans of a node."""

import asyncio

import pytest

from runtime import Clock, Random
from runtime.recorder import Recorder
from runtime.trace import new_trace, trace_id
from runtime.tracing import Begun


@pytest.fixture
async def recorder() -> Recorder:
    clock = Clock()
    return Recorder("n1", clock, Random(clock, 1), None)


def begin(recorder: Recorder, name: str = "wallet.Hold", parent: str | None = None, **attributes: str) -> Begun:
    begun = recorder.begin("wallet", name, "SERVER", parent, {"callboard.caller": "rides", **attributes})
    assert begun is not None
    return begun


async def test_it_counts_messages_along_an_edge_with_their_durations_and_errors(recorder: Recorder) -> None:
    first = begin(recorder)
    await asyncio.sleep(0.03)
    first.end()
    begin(recorder).end(code="not_found")
    [edge] = recorder.edges()
    assert (edge.caller, edge.service, edge.name, edge.kind, edge.count, edge.errors) == (
        "rides",
        "wallet",
        "wallet.Hold",
        "call",
        2,
        1,
    )
    assert edge.seconds >= 0.03
    assert sum(edge.buckets) == 2


async def test_a_span_has_its_parent_and_its_children_have_it_as_theirs(recorder: Recorder) -> None:
    parent = new_trace(Random(Clock()))
    outer = begin(recorder, parent=parent)
    inner = begin(recorder, parent=outer.trace)
    inner.end(KeyError("x"))
    outer.end()
    (first, second), _ = recorder.spans(0, 10)
    assert (second.trace, second.parent, second.node) == (trace_id(parent), parent[36:52], "n1")
    assert (first.parent, first.trace, first.error) == (second.id, second.trace, "KeyError")


async def test_what_callboard_itself_sends_is_not_recorded(recorder: Recorder) -> None:
    for name in ("stream.Pull", "console.ShowStreams", "gateways.RedeemTicket"):
        assert recorder.begin("wallet", name, "SERVER", None, {"callboard.caller": "gateway"}) is None
    page = recorder.begin("gateway", "GET", "SERVER", None, {"http.request.method": "GET", "url.path": "/console/events"})
    assert page is not None
    page.end()
    assert (recorder.edges(), recorder.recorded) == ((), 0)


async def test_it_keeps_a_bounded_number_of_spans_and_edges(recorder: Recorder) -> None:
    for number in range(2_500):
        begin(recorder, f"wallet.N{number}").end()
    assert len(recorder.edges()) == 1_000
    spans, last = recorder.spans(0, 10_000)
    assert (len(spans), last, spans[0].name) == (2_000, 2_500, "wallet.N500")


async def test_pages_of_spans_follow_each_other_without_gaps(recorder: Recorder) -> None:
    for number in range(25):
        begin(recorder, f"wallet.N{number}").end()
    seen: list[str] = []
    after = 0
    while page := recorder.spans(after, 10)[0]:
        after = recorder.spans(after, 10)[1]
        seen += [span.name for span in page]
    assert seen == [f"wallet.N{number}" for number in range(25)]
    assert recorder.spans(10_000, 10) == ((), 25)


async def test_under_load_the_same_traces_are_kept_everywhere_and_all_that_fail() -> None:
    clock = Clock()
    one, other = (Recorder(name, clock, Random(clock, seed), None) for name, seed in (("n1", 1), ("n2", 2)))
    one.one_in = other.one_in = 8
    random = Random(clock, 3)
    parents = [new_trace(random) for _ in range(400)]
    for recorder in (one, other):
        for parent in parents:
            begin(recorder, parent=parent).end()
    kept = [{span.trace for span in recorder.spans(0, 1_000)[0]} for recorder in (one, other)]
    assert kept[0] == kept[1]
    assert 10 < len(kept[0]) < 150
    before = one.recorded
    for parent in parents:
        begin(one, parent=parent).end(code="not_found")
    assert one.recorded - before == 400
    assert one.edges()[0].count == 800, "every message is counted"
