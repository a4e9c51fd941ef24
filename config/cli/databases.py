"""A service's database, for commands that look into it or change it where the service runs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from config import compose
from config.settings import Settings
from runtime import CallboardError, Database


@asynccontextmanager
async def database_of(settings: Settings, service: str) -> AsyncGenerator[Database, None]:
    """Open the database of a service inside the `async with` block. The service may be running.

    Raises:
        CallboardError: if there is no such database here.
    """
    file = compose.database_file(settings, service)
    if compose.database_url(settings, service) is None and not file.exists():
        raise CallboardError(f"{file} does not exist: run this command where {service} runs, with its settings")
    database = compose.databases(settings)(service)
    await database.open()
    try:
        yield database
    finally:
        await database.close()
