"""The watcher: what viewers get, whatever nodes and other viewers do."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.console import watcher as module
from gateway.console.picture import Picture
from gateway.console.watcher import Watcher
from runtime.node.observation import Observe
from runtime.testing import eventually
from tests.gateway.environment import GatewayEnvironment


@pytest.fixture
async def env(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[GatewayEnvironment, None]:
    monkeypatch.setattr(module, "_INTERVAL", 0.05)
    async with GatewayEnvironment("apart") as opened:
        yield opened


def watcher_of(env: GatewayEnvironment) -> Watcher:
    return Watcher(env.gateway.proxy, env.gateway.clock)


def rate(snapshot: Any, service: str) -> float:
    found: float = snapshot["services"].get(service, {"rate": 0.0})["rate"]
    return found


async def test_everybody_who_looks_gets_the_news_and_nothing_runs_once_nobody_does(env: GatewayEnvironment) -> None:
    watcher, seen = watcher_of(env), Counter[str]()
    async with watcher.looking(lambda event, _: seen.update([f"one {event}"])):
        await eventually(lambda: seen["one snapshot"] > 2, "the first one sees it")
        async with watcher.looking(lambda event, _: seen.update([f"other {event}"])):
            assert seen["other snapshot"] == 1, "at once"
            await eventually(lambda: seen["other snapshot"] > 3, "both see it")
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "console"]
    assert tasks == []
    before = seen.total()
    await asyncio.sleep(0.2)
    assert seen.total() == before


async def test_one_who_comes_while_the_last_one_leaves_has_a_picture_of_its_own(env: GatewayEnvironment) -> None:
    watcher, seen = watcher_of(env), Counter[str]()

    async def look(name: str, seconds: float) -> None:
        async with watcher.looking(lambda event, _: seen.update([f"{name} {event}"])):
            await asyncio.sleep(seconds)

    for number in range(20):
        await asyncio.gather(look("a", 0.01), look("b", 0.02), look("c", 0.0))
        assert number >= 0
    async with watcher.looking(lambda event, _: seen.update([f"last {event}"])):
        await eventually(lambda: seen["last snapshot"] > 3, "the last one sees it")
    assert len([task for task in asyncio.all_tasks() if task.get_name() == "console"]) == 0


async def test_a_failure_in_one_tick_does_not_end_the_view(env: GatewayEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, failures = Picture.tick, 3

    def tick(self: Picture, *arguments: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ValueError("an odd answer")
        usual(self, *arguments)

    monkeypatch.setattr(Picture, "tick", tick)
    watcher, seen = watcher_of(env), Counter[str]()
    async with watcher.looking(lambda event, _: seen.update([event])):
        await eventually(lambda: seen["snapshot"] > 1, "it goes on")
    assert failures < 0


async def test_a_node_that_does_not_answer_holds_nobody_up(env: GatewayEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 0.05)
    silent, usual = env.nodes[0].id, env.gateway.proxy.ask_node

    async def ask(node: str, message: Any, timeout: float) -> Any:
        if node == silent:
            await asyncio.Event().wait()
        return await usual(node, message, timeout)

    monkeypatch.setattr(env.gateway.proxy, "ask_node", ask)
    watcher = watcher_of(env)
    snapshots: list[Any] = []
    async with watcher.looking(lambda event, data: snapshots.append(data) if event == "snapshot" else None):
        await eventually(lambda: len(snapshots) > 5, "the others are shown")
        for _ in range(20):
            await env.client.get("/look/x")
        await eventually(lambda: rate(snapshots[-1], "gateway") > 0, "their messages, too")


async def test_a_recording_that_ran_before_is_not_counted_at_once(env: GatewayEnvironment) -> None:
    """Another gateway has looked for a long time."""
    proxy = env.gateway.proxy
    await proxy.ask_node(env.nodes[0].id, Observe(), 5)
    await proxy.ask_node(env.nodes[1].id, Observe(), 5)
    for _ in range(300):
        assert (await env.client.get("/look/x")).status_code == 200
    watcher = watcher_of(env)
    snapshots: list[Any] = []
    async with watcher.looking(lambda event, data: snapshots.append(data) if event == "snapshot" else None):
        await eventually(lambda: len(snapshots) > 5, "some ticks")
    assert {rate(snapshot, "probe") for snapshot in snapshots} == {0.0}
