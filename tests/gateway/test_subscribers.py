"""Streams of server-sent events: who may open one, and when it ends."""

import asyncio
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.service import Gateway
from gateway.subscribers import Subscriber
from runtime import NoInstance
from runtime.testing import eventually
from services.notices.store import Store
from tests.gateway.notices import abort_rides, user_id, wait_for_notices
from tests.sse import follow
from tests.system_under_test import System, open_system, settings
from tests.topology import QuickClock


@pytest.mark.parametrize("path", ["/live", "/console/tail"])
async def test_a_stream_needs_a_bearer_token_and_get(system: System, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer forged"}, {"Authorization": "Basic x"}):
        answer = await system.client.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
    bearer = await system.bearer()
    for method in ("POST", "HEAD", "DELETE"):
        assert (await system.client.request(method, path, headers=bearer)).status_code == 405


async def test_a_stream_ends_when_its_token_expires(tmp_path: Path) -> None:
    clock = QuickClock()
    async with open_system(settings(tmp_path), clock=clock) as system:
        rider = await system.bearer()
        async with follow(system.url, rider) as events:
            await eventually(lambda: system.service(Gateway).subscribers.count == 1, "one stream is open")
            clock.advance(timedelta(seconds=601))
            await eventually(lambda: events.ended, "the stream has ended")
            assert events.received == [("end", {"reason": "the token has expired", "replaced": False}, "")]


async def test_a_stream_ends_when_its_session_ends(system: System) -> None:
    rider = await system.bearer()
    async with follow(system.url, rider) as events:
        assert (await system.client.delete("/sessions/current", headers=rider)).status_code == 204
        await eventually(lambda: events.ended, "the stream has ended")
        assert events.kinds == ["end"]


async def test_a_stopping_gateway_ends_its_streams(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        rider = await system.bearer()
        async with (
            follow(system.url, rider) as events,
            follow(system.url, await system.bearer("operator@example.com"), path="/console/tail") as tail,
        ):
            for node in reversed(system.nodes):
                await node.stop()
            await eventually(lambda: events.ended and tail.ended, "both streams have ended")
            assert events.received == tail.received == [("end", {"reason": "the gateway is stopping", "replaced": False}, "")]


async def test_a_stream_that_opens_while_the_gateway_stops_ends_at_once(system: System) -> None:
    """A browser that is refused does not reconnect. One whose stream ends does, to another gateway."""
    rider = await system.bearer()
    system.service(Gateway).subscribers.end()
    async with follow(system.url, rider) as events:
        await eventually(lambda: events.ended, "the stream has ended")
        assert (events.received, events.retry) == ([("end", {"reason": "the gateway is stopping", "replaced": False}, "")], 1000)


async def test_the_oldest_stream_of_a_user_ends_when_one_too_many_opens(tmp_path: Path) -> None:
    """Its client may have vanished, which nobody notices for minutes. Meanwhile, the user has to get in."""
    async with open_system(settings(tmp_path, streams_per_user=2)) as system:
        rider, operator = await system.bearer(), await system.bearer("operator@example.com")
        async with (
            follow(system.url, operator) as other,
            follow(system.url, rider) as first,
            follow(system.url, rider) as second,
            follow(system.url, rider) as third,
        ):
            await eventually(lambda: first.ended, "the oldest stream has ended")
            assert first.received == [("end", {"reason": "you have opened 2 newer streams", "replaced": True}, "")]
            assert first.retry == 60_000, "it stays away, or it would push out the next one within a second"
            await abort_rides(system, await user_id(system, rider))
            await second.wait_for(1)
            await third.wait_for(1)
            assert (second.ended, third.ended, other.ended) == (False, False, False)
            assert third.retry == 1000
            await eventually(lambda: system.service(Gateway).subscribers.count == 3, "no more streams are open")


async def test_streams_that_are_slow_to_end_are_not_without_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never_ends(self: Any, *_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Subscriber, "run", never_ends)
    async with open_system(settings(tmp_path, streams_per_user=2)) as system:
        rider = await system.bearer()
        followers = system.service(Gateway).subscribers
        async with asyncio.TaskGroup() as group:
            opened = [group.create_task(system.client.get("/live", headers=rider)) for _ in range(4)]
            await eventually(lambda: followers.count == 4, "four streams are open, two of which have to end")
            refused = await system.client.get("/live", headers=rider)
            assert (refused.status_code, refused.json()["code"]) == (429, "too-many-streams")
            for one in opened:
                one.cancel()
        await eventually(lambda: followers.count == 0, "no stream is open")


async def test_the_number_of_streams_is_limited_in_total(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, max_streams=1)) as system:
        rider = await system.bearer()
        async with follow(system.url, rider):
            refused = await system.client.get("/live", headers=rider)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert "retry-after" in refused.headers
        followers = system.service(Gateway).subscribers
        await eventually(lambda: followers.count == 0, "no stream is open")
        async with follow(system.url, rider):
            pass


@pytest.mark.parametrize("after", [None, "notices=1"])
async def test_a_stream_is_open_while_its_service_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str | None
) -> None:
    """A browser whose stream is refused, while it reconnects, does not try again."""
    notices_after, is_away = Store.notices_after, False

    async def be_away(self: Any, *arguments: Any) -> Any:
        if is_away:
            raise NoInstance("notices")
        return await notices_after(self, *arguments)

    monkeypatch.setattr(Store, "notices_after", be_away)
    async with open_system(settings(tmp_path, stream_heartbeat=0.1), clock=QuickClock()) as system:
        rider = await system.bearer()
        await abort_rides(system, await user_id(system, rider), 2)
        await wait_for_notices(system, rider, 2)
        is_away = True
        async with follow(system.url, rider, after=after) as events:
            await eventually(lambda: events.heartbeats >= 2, "the open stream has heartbeats")
            assert (events.received, events.last_id) == ([], "")
            is_away = False
            if after is None:
                await eventually(lambda: events.last_id.startswith("notices=2"), "the position is known")
                await abort_rides(system, await user_id(system, rider), first=3)
            await events.wait_for(1)
            assert events.numbers == ([3] if after is None else [2])


async def test_a_client_that_stops_reading_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_text = "x" * 100_000
    add = Store.add

    async def add_long(self: Any, tx: Any, user: str, kind: Any, text: str, **more: Any) -> None:
        await add(self, tx, user, kind, long_text, **more)

    monkeypatch.setattr(Store, "add", add_long)
    async with open_system(settings(tmp_path, stream_patience=0.3)) as system:
        rider = await system.bearer()
        rider_id = await user_id(system, rider)
        with socket.create_connection((system.client.base_url.host, system.client.base_url.port)) as slow:
            slow.sendall(
                f"GET /live HTTP/1.1\r\nHost: x\r\nAuthorization: {rider['Authorization']}\r\nLast-Event-ID: 0\r\n\r\n".encode()
            )
            await eventually(lambda: system.service(Gateway).subscribers.count == 1, "the slow client's stream is open")
            async with follow(system.url, rider) as fast:
                await abort_rides(system, rider_id, 200)
                await fast.wait_for(200)
                await eventually(lambda: system.service(Gateway).subscribers.count == 1, "only the fast client's stream is open")
            assert system.node.metrics.value("slow_readers_total") == 1
