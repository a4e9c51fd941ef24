"""A whole ride on real containers, and the consistency of the databases in their volumes."""

import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime.testing import eventually
from runtime.testing.expectations import ConformanceError
from tests.containers.engine import KINDS, STATEFUL, Containers, containers
from tests.services import consistency
from tests.services.test_rides import check_a_whole_ride
from tests.system_under_test import System
from tests.topology import QuickClock


@pytest.fixture(params=[kind if "+" in kind else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS])
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[Containers, System], None]:
    async with containers(request.param, tmp_path) as stack:
        yield stack


async def wait_until_consistent(stack: Containers, folder: Path) -> None:
    """Wait until copies of the databases in the volumes are consistent."""
    violations: list[str] = []

    async def consistent() -> bool:
        await stack.databases(folder)
        try:
            violations[:] = consistency.violations(folder)
        except sqlite3.DatabaseError as error:  # the copy was taken during a write
            violations[:] = [str(error)]
        return not violations

    try:
        await eventually(consistent, "the databases are consistent")
    except ConformanceError as error:
        raise AssertionError(violations) from error


async def test_a_rider_rides_pays_and_is_notified(deployment: tuple[Containers, System]) -> None:
    stack, system = deployment
    await stack.databases(system.folder)
    await check_a_whole_ride(system, QuickClock(), lambda: wait_until_consistent(stack, system.folder))
    for service in STATEFUL:
        await stack.do("stop", service, "-t", "20")
    await stack.databases(system.folder)
    assert consistency.violations(system.folder) == []
    entries = consistency.query(system.folder, "wallet", "SELECT kind, cents FROM entries ORDER BY rowid")
    assert [entry["kind"] for entry in entries] == ["top-up", "ride"]
    assert entries[0]["cents"] == 1000
