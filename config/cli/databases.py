"""A service's database, for commands that look into it or change it where the service runs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from config import compose
from config.settings import Settings
from runtime import CallboardError, Database


@asynccontextmanager
async def database_of(settings: Settings, service: str) -> AsyncGenerator[Database, None]:
    """Open the database of a service inside the `async with` block. The service may be running.

    Raises:
        CallboardError: if there is no such database here.
    """
    folder = Path(settings.database.folder)
    if not (folder / f"{service}.sqlite").exists():
        raise CallboardError(
            f"{folder / service}.sqlite does not exist: run this command where {service} runs, with its settings"
        )
    database = compose.databases(settings)(service)
    await database.open()
    try:
        yield database
    finally:
        await database.close()
