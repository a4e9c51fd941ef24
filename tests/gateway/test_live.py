"""`/live`: a user receives every notice at once, completely, and in order."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime import Overloaded
from runtime.testing import eventually
from runtime.testing.expectations import WAIT
from services.notices.messages import Noticed
from services.notices.service import Notices
from services.notices.store import Store
from tests.gateway.notices import abort_rides, user_id, wait_for_notices
from tests.sse import follow
from tests.system_under_test import System, open_system, settings


async def test_all_clients_of_a_user_and_no_others_receive_the_notices(deployment: System) -> None:
    rider, operator = await deployment.bearer(), await deployment.bearer("operator@example.com")
    async with (
        follow(deployment.url, rider) as one,
        follow(deployment.url, rider) as two,
        follow(deployment.url, operator) as other,
    ):
        assert one.response.headers["content-type"].startswith("text/event-stream")
        await abort_rides(deployment, await user_id(deployment, rider), 3)
        await one.wait_for(3)
        await two.wait_for(3)
        assert one.received == two.received
        assert (one.numbers, one.kinds) == ([1, 2, 3], ["ride-aborted"] * 3)
        assert one.received[0][1]["text"].startswith("Your ride was broken off")
        await abort_rides(deployment, await user_id(deployment, operator))
        await other.wait_for(1)
        assert other.numbers == [1]
        assert len(one.received) == 3


async def test_a_client_that_reconnects_continues_after_its_last_event_id(deployment: System) -> None:
    rider = await deployment.bearer()
    rider_id = await user_id(deployment, rider)
    seen: list[int] = []
    async with follow(deployment.url, rider) as events:
        await abort_rides(deployment, rider_id, 2)
        await events.wait_for(2)
        seen += events.numbers
        last = events.last_id
    await abort_rides(deployment, rider_id, 250, first=3)
    await wait_for_notices(deployment, rider, 252)
    async with follow(deployment.url, rider, after=last) as events:
        await events.wait_for(250)
        await abort_rides(deployment, rider_id, 1, first=253)
        await events.wait_for(251)
        seen += events.numbers
    assert seen == list(range(1, 254)), "no notice is missing, and none comes twice"
    async with follow(deployment.url, rider) as events:
        await abort_rides(deployment, rider_id, 1, first=254)
        await events.wait_for(1)
        assert events.numbers == [254], "without a Last-Event-ID, the stream starts with new notices"
    async with follow(deployment.url, rider, after="250") as events:
        await events.wait_for(4)
        assert events.numbers == [251, 252, 253, 254], "a plain number is accepted as a position, too"
    async with follow(deployment.url, rider, after="notices=999") as events:
        await events.wait_for(1)
        assert (events.kinds, events.received[0][1]["after"]) == (["gap"], 254), (
            "a number that does not exist counts as the latest"
        )
        await abort_rides(deployment, rider_id, 1, first=255)
        await events.wait_for(2)
        assert events.numbers == [255]


async def test_a_client_that_reconnects_repeatedly_misses_nothing_and_gets_nothing_twice(deployment: System) -> None:
    rider = await deployment.bearer()
    rider_id = await user_id(deployment, rider)
    seen: list[int] = []
    last = "0"

    async def publish_sixty() -> None:
        for number in range(1, 61):
            await abort_rides(deployment, rider_id, first=number)

    publishing = asyncio.create_task(publish_sixty())
    async with asyncio.timeout(WAIT * 2):
        while not publishing.done() or len(seen) < 60:
            async with follow(deployment.url, rider, after=last) as events:
                if len(seen) < 60:
                    await events.wait_for(1)
                seen += events.numbers
                last = events.last_id
    await publishing
    assert seen == list(range(1, 61))


async def test_a_notice_arrives_even_if_its_signal_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.execution.instance import Instance

    publish = Instance.publish

    async def drop_noticed(self: Any, ctx: Any, signal: Any) -> None:
        if not isinstance(signal, Noticed):
            await publish(self, ctx, signal)

    monkeypatch.setattr(Instance, "publish", drop_noticed)
    async with open_system(settings(tmp_path, stream_heartbeat=0.2)) as system:
        rider = await system.bearer()
        async with follow(system.url, rider) as events:
            await abort_rides(system, await user_id(system, rider))
            await events.wait_for(1)
            await eventually(lambda: events.heartbeats >= 2, "the gateway sends heartbeats")


async def test_a_stream_waits_for_a_service_that_refuses_requests(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream starts once every service has answered. Notices that a service could not list are sent when it answers again."""
    rider = await system.bearer()
    rider_id = await user_id(system, rider)
    following, refusing = Store.notices_after, True

    async def refuse(self: Any, *arguments: Any) -> Any:
        if refusing:
            raise Overloaded("notices")
        return await following(self, *arguments)

    monkeypatch.setattr(Store, "notices_after", refuse)

    async def stop_refusing() -> None:
        nonlocal refusing
        await asyncio.sleep(0.05)  # no public API shows that the service was asked
        refusing = False

    ending_refusal = asyncio.create_task(stop_refusing())
    async with follow(system.url, rider) as events:
        assert ending_refusal.done(), "the stream starts once every service has answered"
        refusing = True
        await abort_rides(system, rider_id, 2)
        await wait_for_notices(system, rider, 2)
        refusing = False
        await events.wait_for(2)
        assert events.numbers == [1, 2]


@pytest.mark.parametrize("made_since", [0, 1, 3], ids=["fewer", "as many", "more"])
async def test_a_position_from_before_a_restore_leads_to_the_fork(tmp_path: Path, made_since: int) -> None:
    """The client has seen notices 1 to 3. The backup has 1 and 2; those that are numbered from 3 on now are other ones."""
    async with open_system(settings(tmp_path)) as system:
        rider = await system.bearer()
        rider_id = await user_id(system, rider)
        async with follow(system.url, rider) as events:
            await abort_rides(system, rider_id, 3)
            await events.wait_for(3)
            second, third = events.received[1][2], events.received[2][2]
        async with system.service(Notices).db.transaction() as tx:
            await tx.execute("DELETE FROM notices WHERE number > 2")
            await tx.execute("UPDATE numbers SET last = 2")
        if made_since:
            await abort_rides(system, rider_id, made_since, first=4)
            await wait_for_notices(system, rider, 2 + made_since)
        async with follow(system.url, rider, after=third) as events:
            await events.wait_for(1 + made_since)
            assert (events.kinds[0], events.received[0][1]["from"], events.received[0][1]["after"]) == ("gap", "notices", 2)
            assert events.numbers == list(range(3, 3 + made_since)), "it continues from the fork"
            assert events.received[0][2] == (second if made_since == 0 else "notices=2")
            await abort_rides(system, rider_id, first=8)
            await events.wait_for(2 + made_since)
        async with follow(system.url, rider, after=second) as events:
            await events.wait_for(1 + made_since)
            assert "gap" not in events.kinds, "what this client has seen is in the backup"


async def test_a_client_that_leaves_before_its_first_notice_misses_nothing(deployment: System) -> None:
    rider = await deployment.bearer()
    rider_id = await user_id(deployment, rider)
    async with follow(deployment.url, rider) as events:
        await eventually(lambda: events.last_id == "notices=0", "the client has received its position")
    await abort_rides(deployment, rider_id)
    await wait_for_notices(deployment, rider, 1)
    async with follow(deployment.url, rider, after=events.last_id) as events:
        await events.wait_for(1)


@pytest.mark.parametrize(
    ("after", "status"), [("x", 400), ("notices=-1", 400), ("notices=1,", 400), ("9" * 30, 400), ("n" * 5000, 400)]
)
async def test_an_invalid_last_event_id_is_refused(system: System, after: str, status: int) -> None:
    answer = await system.client.get("/live", headers={**await system.bearer(), "Last-Event-ID": after})
    assert (answer.status_code, answer.json()["code"]) == (status, "bad-last-event-id")
