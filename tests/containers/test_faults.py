"""Containers are killed, cut off, and paused under a hundred requests per second: retryable requests succeed, and nothing is lost."""

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
from tests.services import consistency
from tests.system_under_test import System

_OUTAGE = 4.0
"""How long a container stays paused or cut off, in seconds."""
_RECOVERY = 60.0
"""How long the system may take to answer again, in seconds."""


@pytest.fixture(params=["http", pytest.param("mqtt", marks=pytest.mark.long), pytest.param("http+mqtt", marks=pytest.mark.long)])
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[Containers, System, Load], None]:
    async with containers(request.param, tmp_path) as (stack, system):
        timeout, connector = aiohttp.ClientTimeout(PATIENCE), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(stack.url, timeout=timeout, connector=connector) as client:
            yield stack, system, Load(client, await system.bearer())


async def under_load(what: str, stack: Containers, load: Load, fault: Callable[[], Awaitable[object]]) -> set[str]:
    """Cause a fault under load, wait until a hundred further requests have succeeded, and return the errors that occurred."""
    load.begin()
    async with load.running():
        await fault()
        before = load.succeeded
        try:
            await eventually(lambda: load.succeeded >= before + 100, "a hundred requests have succeeded again", _RECOVERY)
        except ConformanceError as error:
            print(await stack.logs("gateway"), await stack.logs("wallet"))
            raise AssertionError(f"{what}: {load.error_counts}") from error
    await stack.ready()
    if any(error.startswith("500") for error in load.error_counts):
        print(await stack.logs("gateway"), await stack.logs("wallet"))
    outcome = dict(load.error_counts) or "no errors"
    print(f"{stack.kind}: {what}: {load.succeeded} succeeded, slowest {load.slowest:.1f} s, {outcome}")
    return set(load.error_counts)


@pytest.mark.parametrize(
    "services", [("wallet",), pytest.param(STATEFUL, marks=pytest.mark.long)], ids=["the wallet", "every service"]
)
async def test_retryable_requests_survive_killed_paused_and_cut_off_containers(
    deployment: tuple[Containers, System, Load], services: tuple[str, ...]
) -> None:
    stack, system, load = deployment

    async def kill_and_restart(service: str) -> None:
        await stack.kill(service)
        await stack.do("start", service)

    async def pause() -> None:
        await stack.do("pause", "wallet")
        await asyncio.sleep(_OUTAGE)  # the fault is how long this lasts
        await stack.do("unpause", "wallet")

    async def cut_off() -> None:
        network = await stack.network("wallet")
        await stack.disconnect("wallet", network)
        await asyncio.sleep(_OUTAGE)
        await stack.connect("wallet", network)

    for service in services:
        errors = await under_load(f"{service} killed", stack, load, partial(kill_and_restart, service))
        assert not errors, f"{service} was back within the deadline"
        errors = await under_load(f"{service} restarted", stack, load, partial(stack.do, "restart", service))
        assert not errors, f"{service} was back within the deadline"
    assert not await under_load("wallet paused", stack, load, pause), "the wallet resumed within the deadline"
    # until the cut is noticed, waiting requests fill the limit of one instance
    assert await under_load("wallet cut off", stack, load, cut_off) <= {"503 overloaded"}
    if "mqtt" in stack.kind:
        assert not await under_load("broker killed", stack, load, partial(kill_and_restart, "mosquitto"))
    connection_errors = {"ClientConnectorError", "ClientOSError", "ServerDisconnectedError", "503 not-ready"}
    assert await under_load("gateway killed", stack, load, partial(kill_and_restart, "gateway")) <= connection_errors, (
        "requests fail because there is no other gateway"
    )

    for key in load.keys - load.answered:
        await load.request(key)
    assert load.keys == load.answered, "unanswered requests succeed when repeated with their keys"
    for service in STATEFUL:
        await stack.do("stop", service)
    await stack.databases(system.folder)
    assert consistency.violations(system.folder) == []
    top_ups = consistency.query(system.folder, "wallet", "SELECT cents FROM entries WHERE kind = 'top-up'")
    assert len(top_ups) == len(load.keys), "each key has exactly one entry in the ledger, however often it was sent"
