"""Containers killed, cut off and paused under a hundred requests a second: what can be tried again is, and nothing is lost."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from runtime.testing import eventually
from runtime.testing.expectations import ConformanceError
from tests.containers.engine import STATEFUL, Containers, containers
from tests.containers.load import PATIENCE, Load
from tests.services import account
from tests.system_under_test import System

_AWAY = 4.0
"""Seconds for which a container is paused, or cut off."""
_BACK = 60.0


@pytest.fixture(params=["http", pytest.param("mqtt", marks=pytest.mark.long), pytest.param("http+mqtt", marks=pytest.mark.long)])
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[Containers, System, Load], None]:
    async with containers(request.param, tmp_path) as (made, system):
        timeout, connector = aiohttp.ClientTimeout(PATIENCE), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(made.url, timeout=timeout, connector=connector) as client:
            yield made, system, Load(client, await system.bearer())


async def under_load(what: str, made: Containers, load: Load, trouble: Callable[[], Awaitable[object]]) -> set[str]:
    """Makes trouble, and goes on asking until a hundred were answered well. Gives what went wrong meanwhile."""
    load.begin()
    async with load.going():
        await trouble()
        calm = load.well
        try:
            await eventually(lambda: load.well >= calm + 100, "answers come again", _BACK)
        except ConformanceError as error:
            raise AssertionError(f"{what}: {load.said}") from error
    await made.ready()
    if any(said.startswith("500") for said in load.said):
        print(await made.logs("gateway"), await made.logs("wallet"))
    print(f"{made.kind}: {what}: {load.well} well, slowest {load.slowest:.1f} s, {dict(load.said) or 'no errors'}")
    return set(load.said)


async def test_trouble_under_load(deployment: tuple[Containers, System, Load]) -> None:
    made, system, load = deployment

    async def anew(service: str) -> None:
        await made.kill(service)
        await made.do("start", service)

    async def pause() -> None:
        await made.do("pause", "wallet")
        await asyncio.sleep(_AWAY)  # that it lasts is the trouble
        await made.do("unpause", "wallet")

    async def cut_off() -> None:
        network = await made.network("wallet")
        await made.disconnect("wallet", network)
        await asyncio.sleep(_AWAY)
        await made.connect("wallet", network)

    for service in STATEFUL:
        said = await under_load(f"{service} killed", made, load, partial(anew, service))
        assert not said, f"{service} was back within the deadline"
    assert not await under_load("wallet paused", made, load, pause), "it went on within the deadline"
    # a cut that takes long to be noticed fills what one instance may have under way
    assert await under_load("wallet cut off", made, load, cut_off) <= {"503 overloaded"}
    if "mqtt" in made.kind:
        assert not await under_load("broker killed", made, load, partial(anew, "mosquitto"))
    of_clients = {"ClientConnectorError", "ClientOSError", "ServerDisconnectedError", "503 not-ready"}
    assert await under_load("gateway killed", made, load, partial(anew, "gateway")) <= of_clients, "there is no other gateway"

    for key in load.keys - load.answered:
        await load.ask(key)
    assert load.keys == load.answered, "what was not answered is asked again with its key"
    for service in STATEFUL:
        await made.do("stop", service)
    await made.databases(system.folder)
    assert account.faults(system.folder) == []
    made_of = account.rows(system.folder, "wallet", "SELECT cents FROM entries WHERE kind = 'top-up'")
    assert len(made_of) == len(load.keys), "each key is one entry in the ledger, however often it was asked"
