"""`/live` and `/console/tail`: what is new comes at once, wholly, and in order."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.service import Gateway
from runtime import Overloaded
from runtime.network import Envelope, Topic
from runtime.testing import eventually
from runtime.testing.expectations import WAIT
from services.notices.messages import Noticed
from services.notices.store import Store
from services.rides.messages import RideAborted
from services.rides.service import Rides
from tests.sse import follow
from tests.system_under_test import IN_PROCESS, WITH_SIGNALS, System, open_deployment, open_system, settings
from tests.topology import QuickClock

Headers = dict[str, str]


async def user_id(system: System, headers: Headers) -> str:
    found: str = (await system.client.get("/users/me", headers=headers)).json()["id"]
    return found


@pytest.fixture(params=IN_PROCESS)
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    """The whole system, its services within reach: they are made to speak."""
    async with open_deployment(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=WITH_SIGNALS)
async def loud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    """The same, where there are signals."""
    async with open_deployment(request.param, tmp_path) as made:
        yield made


async def tell(system: System, user: str, count: int = 1, *, first: int = 1) -> None:
    """Something happens to a user, `count` times."""
    async with system.service(Rides).db.transaction() as tx:
        for number in range(first, first + count):
            await tx.publish(RideAborted(f"ride-{number}", user, "scooter", "scooter-lost"))


async def told(system: System, headers: Headers, count: int) -> None:
    async def all_of_them() -> bool:
        items = (await system.client.get("/notices", headers=headers)).json()["items"]
        return bool(items) and items[0]["number"] == count

    await eventually(all_of_them, f"{count} notices are written")


async def test_every_device_of_a_rider_sees_what_happens_and_nobody_elses_does(deployment: System) -> None:
    rider, operator = await deployment.bearer(), await deployment.bearer("operator@example.com")
    async with (
        follow(deployment.url, rider) as one,
        follow(deployment.url, rider) as two,
        follow(deployment.url, operator) as other,
    ):
        assert one.response.headers["content-type"].startswith("text/event-stream")
        await tell(deployment, await user_id(deployment, rider), 3)
        await one.count(3)
        await two.count(3)
        assert one.came == two.came
        assert (one.numbers, one.kinds) == ([1, 2, 3], ["ride-aborted"] * 3)
        assert one.came[0][1]["text"].startswith("Your ride was broken off")
        await tell(deployment, await user_id(deployment, operator))
        await other.count(1)
        assert other.numbers == [1]
        assert len(one.came) == 3


async def test_a_client_that_comes_back_goes_on_where_it_was(deployment: System) -> None:
    rider = await deployment.bearer()
    rider_id = await user_id(deployment, rider)
    seen: list[int] = []
    async with follow(deployment.url, rider) as events:
        await tell(deployment, rider_id, 2)
        await events.count(2)
        seen += events.numbers
        last = events.last_id
    await tell(deployment, rider_id, 250, first=3)
    await told(deployment, rider, 252)
    async with follow(deployment.url, rider, after=last) as events:
        await events.count(250)
        await tell(deployment, rider_id, 1, first=253)
        await events.count(251)
        seen += events.numbers
    assert seen == list(range(1, 254)), "without a gap, and none twice"
    async with follow(deployment.url, rider) as events:
        await tell(deployment, rider_id, 1, first=254)
        await events.count(1)
        assert events.numbers == [254], "without a Last-Event-ID, from now on"
    async with follow(deployment.url, rider, after="250") as events:
        await events.count(4)
        assert events.numbers == [251, 252, 253, 254], "a plain number does, too"
    async with follow(deployment.url, rider, after="notices=999") as events:
        await tell(deployment, rider_id, 1, first=255)
        await events.count(1)
        assert events.numbers == [255], "a number that is not there yet counts as the last"


async def test_cut_again_and_again_while_things_happen(deployment: System) -> None:
    rider = await deployment.bearer()
    rider_id = await user_id(deployment, rider)
    seen: list[int] = []
    last = "0"

    async def happen() -> None:
        for number in range(1, 61):
            await tell(deployment, rider_id, first=number)

    happening = asyncio.create_task(happen())
    async with asyncio.timeout(WAIT * 2):
        while not happening.done() or len(seen) < 60:
            async with follow(deployment.url, rider, after=last) as events:
                if len(seen) < 60:
                    await events.count(1)
                seen += events.numbers
                last = events.last_id
    await happening
    assert seen == list(range(1, 61))


async def test_a_lost_nudge_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.execution.instance import Instance

    publish = Instance.publish

    async def lose(self: Any, ctx: Any, signal: Any) -> None:
        if not isinstance(signal, Noticed):
            await publish(self, ctx, signal)

    monkeypatch.setattr(Instance, "publish", lose)
    async with open_system(settings(tmp_path, stream_heartbeat=0.2)) as system:
        rider = await system.bearer()
        async with follow(system.url, rider) as events:
            await tell(system, await user_id(system, rider))
            await events.count(1)
            await eventually(lambda: events.beats >= 2, "the line is kept alive")


async def test_a_service_that_cannot_be_asked_is_waited_for(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first answer nothing has begun: what happens meanwhile comes; later it is made up for."""
    rider = await system.bearer()
    rider_id = await user_id(system, rider)
    following, refusing = Store.following, True

    async def refuse(self: Any, *arguments: Any) -> Any:
        if refusing:
            raise Overloaded("notices")
        return await following(self, *arguments)

    monkeypatch.setattr(Store, "following", refuse)

    async def relent() -> None:
        nonlocal refusing
        await asyncio.sleep(0.05)  # nothing shows that it was asked
        refusing = False

    relenting = asyncio.create_task(relent())
    async with follow(system.url, rider) as events:
        assert relenting.done(), "it begins when everybody could be asked"
        refusing = True
        await tell(system, rider_id, 2)
        await told(system, rider, 2)
        refusing = False
        await events.count(2)
        assert events.numbers == [1, 2]


async def test_a_client_that_goes_before_anything_came_misses_nothing(deployment: System) -> None:
    rider = await deployment.bearer()
    rider_id = await user_id(deployment, rider)
    async with follow(deployment.url, rider) as events:
        await eventually(lambda: events.last_id == "notices=0", "it is told where it is")
    await tell(deployment, rider_id)
    await told(deployment, rider, 1)
    async with follow(deployment.url, rider, after=events.last_id) as events:
        await events.count(1)


async def test_who_lags_behind_a_busy_publisher_is_cut_off_like_others(system: System) -> None:
    """A stream that has always more to send still looks at its token."""
    operator = await system.bearer("operator@example.com")
    busy = True

    async def keep_busy() -> None:
        while busy:
            await tell(system, "somebody", 200)

    async with follow(system.url, operator, path="/console/tail?kind=event") as tail:
        working = asyncio.create_task(keep_busy())
        await tail.count(200)
        assert (await system.client.delete("/sessions/current", headers=operator)).status_code == 204
        await eventually(lambda: tail.ended, "the stream ends")
        busy = False
        await working
        assert tail.kinds[-1] == "end"


async def test_nobody_can_forge_an_event_in_the_stream(system: System) -> None:
    operator = await system.bearer("operator@example.com")
    forged = b'{}\n\nevent: event\ndata: {"name":"wallet.Stolen"}\n\n'
    async with follow(system.url, operator, path="/console/tail?kind=signal") as tail:
        transport = system.node.environment.transport
        for number, sent in enumerate((forged, b'{"user_id":\n"u"}')):
            envelope = Envelope("signal", str(number), "notices.Noticed", sent)
            await transport.multicast(Topic("signal", "notices", "Noticed", "u"), envelope, "notices")
        await tail.count(2)
        assert sorted(tail.kinds) == ["dropped", "signal"]


@pytest.mark.parametrize(
    ("after", "status"), [("x", 400), ("notices=-1", 400), ("notices=1,", 400), ("9" * 30, 400), ("n" * 5000, 400)]
)
async def test_a_position_that_is_none(system: System, after: str, status: int) -> None:
    answer = await system.client.get("/live", headers={**await system.bearer(), "Last-Event-ID": after})
    assert (answer.status_code, answer.json()["code"]) == (status, "bad-last-event-id")


@pytest.mark.parametrize("path", ["/live", "/console/tail"])
async def test_who_may_follow_and_how(system: System, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer forged"}, {"Authorization": "Basic x"}):
        answer = await system.client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
    bearer = await system.bearer()
    for method in ("POST", "HEAD", "DELETE"):
        assert (await system.client.request(method, path, headers=bearer)).status_code == 405


async def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    clock = QuickClock()
    async with open_system(settings(tmp_path), clock=clock) as system:
        rider = await system.bearer()
        async with follow(system.url, rider) as events:
            await eventually(lambda: system.service(Gateway).followers.count == 1, "somebody follows")
            clock.advance(timedelta(seconds=601))
            await eventually(lambda: events.ended, "the stream ends")
            assert events.came == [("end", {"reason": "the token has expired"}, "")]


async def test_a_stream_ends_when_the_session_does(system: System) -> None:
    rider = await system.bearer()
    async with follow(system.url, rider) as events:
        assert (await system.client.delete("/sessions/current", headers=rider)).status_code == 204
        await eventually(lambda: events.ended, "the stream ends")
        assert events.kinds == ["end"]


async def test_stopping_ends_the_streams(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        rider = await system.bearer()
        async with (
            follow(system.url, rider) as events,
            follow(system.url, await system.bearer("operator@example.com"), path="/console/tail") as tail,
        ):
            for node in reversed(system.nodes):
                await node.stop()
            await eventually(lambda: events.ended and tail.ended, "both streams end")
            assert events.came == tail.came == [("end", {"reason": "the gateway is stopping"}, "")]


async def test_how_many_may_follow(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, streams_per_user=2, max_streams=3)) as system:
        rider, operator = await system.bearer(), await system.bearer("operator@example.com")
        async with follow(system.url, rider), follow(system.url, rider):
            refused = await system.client.get("/live", headers=rider)
            assert (refused.status_code, refused.json()["code"]) == (429, "too-many-streams")
            async with follow(system.url, operator):
                refused = await system.client.get("/live", headers=operator)
                assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
                assert "retry-after" in refused.headers
        followers = system.service(Gateway).followers
        await eventually(lambda: followers.count == 0, "who has gone is forgotten")
        async with follow(system.url, rider):
            pass


async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 100_000
    add = Store.add

    async def add_long(self: Any, tx: Any, user: str, kind: Any, text: str, **more: Any) -> None:
        await add(self, tx, user, kind, long, **more)

    monkeypatch.setattr(Store, "add", add_long)
    async with open_system(settings(tmp_path, stream_patience=0.3)) as system:
        rider = await system.bearer()
        rider_id = await user_id(system, rider)
        with socket.create_connection((system.client.base_url.host, system.client.base_url.port)) as slow:
            slow.sendall(
                f"GET /live HTTP/1.1\r\nHost: x\r\nAuthorization: {rider['Authorization']}\r\nLast-Event-ID: 0\r\n\r\n".encode()
            )
            await eventually(lambda: system.service(Gateway).followers.count == 1, "it follows")
            async with follow(system.url, rider) as quick:
                await tell(system, rider_id, 200)
                await quick.count(200)
                await eventually(lambda: system.service(Gateway).followers.count == 1, "the slow one is cut off")
            assert system.node.metrics.value("slow_readers_total") == 1


# What passes


async def test_tail_shows_events_and_signals_as_they_pass(deployment: System) -> None:
    operator, rider = await deployment.bearer("operator@example.com"), await deployment.bearer()
    assert (await deployment.client.get("/console/tail", headers=rider)).status_code == 403
    rider_id = await user_id(deployment, rider)
    signals_pass = deployment.node.environment.transport.capabilities.signals
    async with (
        follow(deployment.url, rider) as events,
        follow(deployment.url, operator, path="/console/tail?kind=signal&match=notices.*") as before,
    ):
        await tell(deployment, rider_id)
        await events.count(1)
        await before.count(1 if signals_pass else 0)
    async with (
        follow(deployment.url, operator, path="/console/tail") as everything,
        follow(deployment.url, operator, path="/console/tail?match=rides.*&kind=event") as narrow,
        follow(deployment.url, operator, path="/console/tail?kind=signal&match=notices.*") as signals,
    ):
        await eventually(lambda: deployment.service(Gateway).followers.count == 3, "three watch")
        await tell(deployment, rider_id, 3, first=2)
        said = 3 if signals_pass else 0

        def seen() -> list[tuple[str, str, str]]:
            return [(kind, data["name"], data["from"]) for kind, data, _ in everything.came]

        noticed = ("signal", "notices.Noticed", "notices")
        await eventually(lambda: seen().count(("event", "rides.RideAborted", "rides")) == 3, "the events come")
        await eventually(lambda: seen().count(noticed) == len(signals.came) == said, "signals, too")
        await narrow.count(3)
        assert set(seen()) - {noticed, ("signal", "fleet.StillHearing", "fleet")} == {("event", "rides.RideAborted", "rides")}
        assert [data["body"]["ride_id"] for _, data, _ in narrow.came] == ["ride-2", "ride-3", "ride-4"], "from now on, in order"
        assert {data["body"]["user_id"] for _, data, _ in signals.came} <= {rider_id}
        assert [data["seq"] for _, data, _ in narrow.came] == [2, 3, 4]
    readers = await deployment.service(Rides).db.fetch("SELECT subscriber FROM callboard_readers")
    assert "gateway" not in {row["subscriber"] for row in readers}, "events are not kept for who only looks"


async def test_a_signal_is_shown_once_whoever_else_listens_for_it(loud: System) -> None:
    """The tail hears all keys, the rider's stream hears one: on a broker that makes two copies."""
    operator, rider = await loud.bearer("operator@example.com"), await loud.bearer()
    async with follow(loud.url, rider) as events, follow(loud.url, operator, path="/console/tail?match=notices.*") as tail:
        for number in range(1, 4):
            await tell(loud, await user_id(loud, rider), first=number)
            await events.count(number)
        async with follow(loud.url, operator) as last:
            await tell(loud, await user_id(loud, operator))
            await last.count(1)
        await tail.count(4)
        assert len({data["id"] for _, data, _ in tail.came}) == len(tail.came) == 4


@pytest.mark.parametrize("query", ["kind=request", "x=1", "match=%ff"])
async def test_tail_refuses_what_it_does_not_know(system: System, query: str) -> None:
    answer = await system.client.get(f"/console/tail?{query}", headers=await system.bearer("operator@example.com"))
    assert answer.status_code in (400, 422)
