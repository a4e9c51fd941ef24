"""The pytest plugin `callboard`: fixtures for tests of a project's services (docs/testing.md)."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from config.testing import Client, Project
    from runtime.testing import MovableClock

_MARKER = (
    "callboard(services=…, fakes=…, settings=…, transport=…): how the fixture `project` runs the project, as the arguments of "
    "config.testing.running"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def clock() -> "MovableClock":
    """The clock of the project, which `await clock.advance(3600)` moves. Timers and timeouts follow."""
    from runtime.testing import MovableClock

    return MovableClock()


@pytest_asyncio.fixture
async def project(request: pytest.FixtureRequest, tmp_path: Path) -> "AsyncGenerator[Project, None]":
    """The project, running until the test ends."""
    from config.testing import running

    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("callboard"):
        options = {**marker.kwargs, **options}  # the marker that is closest to the test comes first
    if "clock" in request.fixturenames:
        options["clock"] = request.getfixturevalue("clock")
    async with running(tmp_path / "databases", **options) as made:
        yield made


@pytest.fixture
def client(project: "Project") -> "Client":
    """An HTTP client of the project's gateway. `client.as_user("u1", roles="rider")` acts as a user."""
    return project.client


@pytest.fixture
def published(project: "Project") -> Callable[[type[Any]], list[Any]]:
    """Returns the published events or signals of a class: `assert published(RideStarted)`."""
    return project.published
