"""`/console/tail`: operators see events and signals as they are published."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.service import Gateway
from runtime import Database
from runtime.clock import rfc3339
from runtime.network import Envelope, Topic
from runtime.testing import eventually
from services.rides.service import Rides
from services.wallet.service import Wallet
from tests.gateway.notices import abort_rides, user_id
from tests.sse import Events, follow
from tests.system_under_test import WITH_SIGNALS, System, open_deployment, open_system, settings


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


async def test_signals_without_an_id_are_all_shown(system: System) -> None:
    """A device may publish without Correlation Data."""
    operator = await system.bearer("operator@example.com")
    async with follow(system.url, operator, path="/console/tail?kind=signal") as tail:
        for number in range(3):
            envelope = Envelope("signal", "", "notices.Noticed", b'{"user_id":"u%d"}' % number)
            await system.node.environment.transport.multicast(Topic("signal", "notices", "Noticed", "u"), envelope, "notices")
        await tail.wait_for(3)
        assert [data["body"]["user_id"] for _, data, _ in tail.received] == ["u0", "u1", "u2"]


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


@pytest.mark.parametrize(
    "query", ["kind=request", "x=1", "match=%ff", "since=yesterday", "since=2026-11-30", "since=2026-11-30T08:00:00"]
)
async def test_tail_refuses_an_invalid_query(system: System, query: str) -> None:
    answer = await system.client.get(f"/console/tail?{query}", headers=await system.bearer("operator@example.com"))
    assert answer.status_code in (400, 422)


EVENTS = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
"""When the events of `rides_published_until` begin."""


def at(seconds: float) -> str:
    return rfc3339(EVENTS + timedelta(seconds=seconds))


async def published(database: Database, kind: str, body: str, events: dict[int, str]) -> None:
    """Put events of a type into a stream, each with its number and moment."""
    await database.execute(
        """
        INSERT INTO callboard_stream SELECT CAST(key AS INTEGER), 'id-' || key, $1, $2, value, '' FROM json_each($3)
        """,
        kind,
        body,
        json.dumps(events),
    )
    await database.execute("UPDATE callboard_stream_head SET seq = $1", max(events))


async def rides_published_until(system: System, last: int) -> None:
    """Put events into the stream of rides, one each second, of which the first ten are pruned."""
    body = '{"ride_id":"r","user_id":"u","scooter_id":"s","hold_id":"h","reason":"lost"}'
    database = system.service(Rides).db
    await published(database, "rides.RideAborted", body, {number: at(number) for number in range(11, last + 1)})
    await database.execute("UPDATE callboard_stream_head SET pruned = 10")


@pytest.mark.parametrize(
    ("seconds", "first"), [(0, 11), (11, 11), (12, 12), (499.5, 500), (500, 500), (699, 699), (700, 700), (701, 701)]
)
@pytest.mark.parametrize("zone", [0, 5.5], ids=["UTC", "elsewhere"])
async def test_tail_begins_at_the_first_event_since_a_time(one_system: System, seconds: float, first: int, zone: float) -> None:
    moment = (EVENTS + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=zone)))
    since = quote(moment.isoformat())
    await rides_published_until(one_system, 700)
    operator = await one_system.bearer("operator@example.com")
    async with follow(one_system.url, operator, path=f"/console/tail?match=rides.*&kind=event&since={since}") as tail:
        await tail.wait_for(701 - first)
        await eventually(lambda: one_system.service(Gateway).subscribers.count == 1, "the tail is open")
        await abort_rides(one_system, "somebody")
        await tail.wait_for(702 - first)
        assert [data["seq"] for _, data, _ in tail.received] == list(range(first, 702)), "and goes on live, without a gap"


async def test_events_of_a_type_that_is_gone_do_not_hide_where_a_time_is(one_system: System) -> None:
    await rides_published_until(one_system, 2300)
    await one_system.service(Rides).db.execute(
        "UPDATE callboard_stream SET type = 'rides.Gone' WHERE seq BETWEEN 100 AND 2200 OR seq = 50"
    )
    operator = await one_system.bearer("operator@example.com")
    for since, first, count in ((at(50), 51, 149), (at(1000), 2201, 100)):
        async with follow(one_system.url, operator, path=f"/console/tail?match=rides.*&since={since}") as tail:
            await tail.wait_for(count)
            assert (tail.received[0][1]["seq"], tail.received[-1][1]["seq"]) == (first, 2300)


async def balances_published(system: System, moments: Sequence[str]) -> None:
    """Put events into the stream of the wallet, one at each moment."""
    await published(system.service(Wallet).db, "wallet.BalanceLow", "{}", dict(enumerate(moments, 1)))


ALL = f"/console/tail?match=rides.*&match=wallet.*&kind=event&since={quote(at(0))}"


def numbers(tail: Events, publisher: str) -> list[int]:
    return [data["seq"] for _, data, _ in tail.received if data["from"] == publisher]


async def test_past_events_of_all_services_come_in_the_order_of_time(one_system: System) -> None:
    await rides_published_until(one_system, 700)
    moments = [at(10 + number) for number in range(1, 601, 2)]  # every second one has the time of an event of rides
    moments[150] = at(15)  # it was written while the clock was set back
    await balances_published(one_system, moments)
    operator = await one_system.bearer("operator@example.com")
    async with follow(one_system.url, operator, path=ALL) as tail:
        await tail.wait_for(690 + 300)
        assert numbers(tail, "rides") == list(range(11, 701))
        assert numbers(tail, "wallet") == list(range(1, 301))
        steady = [data["at"] for _, data, _ in tail.received if data["id"] != "id-151" or data["from"] == "rides"]
        assert steady == sorted(steady)
        await abort_rides(one_system, "somebody")
        await tail.wait_for(690 + 300 + 1)


async def test_nobody_waits_for_the_past_of_a_service_that_has_gone(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path), separate_nodes=True) as system:
        await rides_published_until(system, 10_000)
        await balances_published(system, [at(20_000 + number) for number in range(250)])  # later than all rides
        operator = await system.bearer("operator@example.com")
        async with follow(system.url, operator, path=ALL) as tail:
            await tail.wait_for(1000)
            assert numbers(tail, "wallet") == []
            [node] = [node for node in system.nodes if node.service(Rides) is not None]
            await node.crash()
            await eventually(lambda: numbers(tail, "wallet") == list(range(1, 251)), "the past of the wallet is shown", 30)
            assert len(numbers(tail, "rides")) < 9_990


async def test_what_is_pruned_while_another_past_is_read_is_all_that_is_missing(one_system: System) -> None:
    await rides_published_until(one_system, 5_000)
    await balances_published(one_system, [at(6_000 + number) for number in range(250)])
    operator = await one_system.bearer("operator@example.com")
    async with follow(one_system.url, operator, path=ALL) as tail:
        await tail.wait_for(1000)
        wallet = one_system.service(Wallet).db
        await wallet.execute("DELETE FROM callboard_stream WHERE seq <= 120")
        await wallet.execute("UPDATE callboard_stream_head SET pruned = 120")
        await tail.wait_for(4_990 + 130)
        assert numbers(tail, "rides") == list(range(11, 5_001))
        assert numbers(tail, "wallet") == list(range(121, 251))


@pytest.fixture
async def one_system(tmp_path: Path) -> AsyncGenerator[System, None]:
    async with open_system(settings(tmp_path)) as opened:
        yield opened
