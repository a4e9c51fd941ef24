"""The ride story on real containers, and the account of it in their volumes."""

import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime.testing import eventually
from runtime.testing.expectations import ConformanceError
from tests.containers.engine import KINDS, STATEFUL, Containers, containers
from tests.services import account
from tests.services.test_rides import ride_story
from tests.system_under_test import System
from tests.topology import QuickClock


@pytest.fixture(params=KINDS)
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[Containers, System], None]:
    async with containers(request.param, tmp_path) as made:
        yield made


async def account_is_right(made: Containers, folder: Path) -> None:
    """Waits until the databases in the volumes, copied, have no fault."""
    faults: list[str] = []

    async def right() -> bool:
        await made.databases(folder)
        try:
            faults[:] = account.faults(folder)
        except sqlite3.DatabaseError as error:  # copied in the middle of a write
            faults[:] = [str(error)]
        return not faults

    try:
        await eventually(right, "the account is right")
    except ConformanceError as error:
        raise AssertionError(faults) from error


async def test_the_ride_story(deployment: tuple[Containers, System]) -> None:
    made, system = deployment
    await made.databases(system.folder)
    await ride_story(system, QuickClock(), lambda: account_is_right(made, system.folder))
    for service in STATEFUL:
        await made.do("stop", service, "-t", "20")
    await made.databases(system.folder)
    assert account.faults(system.folder) == []
    entries = account.rows(system.folder, "wallet", "SELECT kind, cents FROM entries ORDER BY rowid")
    assert [entry["kind"] for entry in entries] == ["top-up", "ride"]
    assert entries[0]["cents"] == 1000
