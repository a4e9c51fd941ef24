"""Opens the database of a service for a command that reads or changes it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from config import compose
from config.settings import Settings
from runtime import CallboardError, Database


@asynccontextmanager
async def service_database(settings: Settings, service: str) -> AsyncGenerator[Database, None]:
    """Open the database of a service, which may be running.

    Raises:
        CallboardError: if there is no such database here.
    """
    path = Path(settings.database.folder) / f"{service}.sqlite"
    if not path.exists():
        raise CallboardError(f"{path} does not exist: run this command where {service} runs, with its settings")
    database = compose.databases(settings)(service)
    await database.open()
    try:
        yield database
    finally:
        await database.close()
