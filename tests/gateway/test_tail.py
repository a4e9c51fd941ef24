"""`/console/tail`: operators see events and signals as they are published."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gateway.service import Gateway
from runtime.network import Envelope, Topic
from runtime.testing import eventually
from services.rides.service import Rides
from tests.gateway.notices import abort_rides, user_id
from tests.sse import follow
from tests.system_under_test import WITH_SIGNALS, System, open_deployment


@pytest.fixture(params=WITH_SIGNALS)
async def deployment_with_signals(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    """The whole system in this process, on each topology that carries signals."""
    async with open_deployment(request.param, tmp_path) as opened:
        yield opened


async def test_logout_ends_a_stream_that_lags_behind_a_busy_publisher(system: System) -> None:
    """A stream that always has more to send still checks its token."""
    operator = await system.bearer("operator@example.com")
    busy = True

    async def keep_publishing() -> None:
        while busy:
            await abort_rides(system, "somebody", 200)

    async with follow(system.url, operator, path="/console/tail?kind=event") as tail:
        publishing = asyncio.create_task(keep_publishing())
        await tail.wait_for(200)
        assert (await system.client.delete("/sessions/current", headers=operator)).status_code == 204
        await eventually(lambda: tail.ended, "the stream has ended")
        busy = False
        await publishing
        assert tail.kinds[-1] == "end"


async def test_a_signal_cannot_forge_an_event_in_the_stream(system: System) -> None:
    operator = await system.bearer("operator@example.com")
    forged = b'{}\n\nevent: event\ndata: {"name":"wallet.Stolen"}\n\n'
    async with follow(system.url, operator, path="/console/tail?kind=signal") as tail:
        transport = system.node.environment.transport
        for number, sent in enumerate((forged, b'{"user_id":\n"u"}')):
            envelope = Envelope("signal", str(number), "notices.Noticed", sent)
            await transport.multicast(Topic("signal", "notices", "Noticed", "u"), envelope, "notices")
        await tail.wait_for(2)
        assert sorted(tail.kinds) == ["dropped", "signal"]


async def test_tail_shows_events_and_signals_as_they_are_published(deployment: System) -> None:
    operator, rider = await deployment.bearer("operator@example.com"), await deployment.bearer()
    assert (await deployment.client.get("/console/tail", headers=rider)).status_code == 403
    rider_id = await user_id(deployment, rider)
    carries_signals = deployment.node.environment.transport.capabilities.signals
    async with (
        follow(deployment.url, rider) as events,
        follow(deployment.url, operator, path="/console/tail?kind=signal&match=notices.*") as before,
    ):
        await abort_rides(deployment, rider_id)
        await events.wait_for(1)
        await before.wait_for(1 if carries_signals else 0)
    async with (
        follow(deployment.url, operator, path="/console/tail") as everything,
        follow(deployment.url, operator, path="/console/tail?match=rides.*&kind=event") as narrow,
        follow(deployment.url, operator, path="/console/tail?kind=signal&match=notices.*") as signals,
    ):
        await eventually(lambda: deployment.service(Gateway).subscribers.count == 3, "three tails are open")
        await abort_rides(deployment, rider_id, 3, first=2)
        expected_signals = 3 if carries_signals else 0

        def seen() -> list[tuple[str, str, str]]:
            return [(kind, data["name"], data["from"]) for kind, data, _ in everything.received]

        noticed = ("signal", "notices.Noticed", "notices")
        await eventually(lambda: seen().count(("event", "rides.RideAborted", "rides")) == 3, "the three events are shown")
        await eventually(lambda: seen().count(noticed) == len(signals.received) == expected_signals, "all signals are shown, too")
        await narrow.wait_for(3)
        assert set(seen()) - {noticed, ("signal", "fleet.StillHearing", "fleet")} == {("event", "rides.RideAborted", "rides")}
        assert [data["body"]["ride_id"] for _, data, _ in narrow.received] == ["ride-2", "ride-3", "ride-4"], (
            "only new events are shown, in order"
        )
        assert {data["body"]["user_id"] for _, data, _ in signals.received} <= {rider_id}
        assert [data["seq"] for _, data, _ in narrow.received] == [2, 3, 4]
    readers = await deployment.service(Rides).db.fetch("SELECT subscriber FROM callboard_readers")
    assert "gateway" not in {row["subscriber"] for row in readers}, "a tail does not keep events from being pruned"


async def test_tail_shows_a_signal_once_even_if_other_streams_receive_it(deployment_with_signals: System) -> None:
    """The tail subscribes to all keys and the rider's stream to one, so a broker delivers two copies of the signal."""
    operator, rider = await deployment_with_signals.bearer("operator@example.com"), await deployment_with_signals.bearer()
    async with (
        follow(deployment_with_signals.url, rider) as events,
        follow(deployment_with_signals.url, operator, path="/console/tail?match=notices.*") as tail,
    ):
        for number in range(1, 4):
            await abort_rides(deployment_with_signals, await user_id(deployment_with_signals, rider), first=number)
            await events.wait_for(number)
        async with follow(deployment_with_signals.url, operator) as last:
            await abort_rides(deployment_with_signals, await user_id(deployment_with_signals, operator))
            await last.wait_for(1)
        await tail.wait_for(4)
        assert len({data["id"] for _, data, _ in tail.received}) == len(tail.received) == 4


@pytest.mark.parametrize("query", ["kind=request", "x=1", "match=%ff"])
async def test_tail_refuses_an_invalid_query(system: System, query: str) -> None:
    answer = await system.client.get(f"/console/tail?{query}", headers=await system.bearer("operator@example.com"))
    assert answer.status_code in (400, 422)
