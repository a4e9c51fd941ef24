"""The databases of services, for commands that look into them or change them where the services run."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from config import compose
from config.settings import Settings
from runtime import CallboardError, Clock, Database, Request
from runtime.durable.operations import Operations
from runtime.durable.retention import Retention
from runtime.durable.stream import read_history
from runtime.service.service import Definition
from runtime.storage.migrations import SCHEMA, migrate
from runtime.telemetry import logger

T = TypeVar("T")


def has_database(settings: Settings, service: str) -> bool:
    """Return whether the database of a service can be opened here."""
    return compose.database_url(settings, service) is not None or compose.database_file(settings, service).exists()


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


def stateful(settings: Settings, service: str) -> Definition:
    """Return the definition of a service that has a database.

    Raises:
        CallboardError: if there is no such service, or it has none.
    """
    [definition] = compose.definitions(settings, [service])
    if not definition.needs_database:
        raise CallboardError(f"{service} has no database")
    return definition


async def answer_here(settings: Settings, service: str, message: Request[T]) -> T:
    """Answer a request of the console from the service's database.

    Raises:
        CallboardError: if there is no such database here.
        ServiceError: if the request does not fit what is stored.
    """
    definition = stateful(settings, service)
    publishers = {handler.spec.contract.name for handler in definition.events.values()}
    events = {publisher: definition.events_of(publisher) for publisher in sorted(publishers)}

    async def head(publisher: str) -> int | None:
        """Return the head of another service's stream, if its database is here."""
        known = compose.catalogue(settings)
        if publisher not in known or not known[publisher].definition.needs_database or not has_database(settings, publisher):
            return None
        async with database_of(settings, publisher) as database:
            return (await read_history(database)).head

    async with database_of(settings, service) as database:
        operations = Operations(service, database, events, logger(service), head, {}, Retention(database, Clock()))
        reply: T = await operations.answers[type(message)](message)
        return reply


async def migrate_all(database: Database, definition: Definition) -> int:
    """Apply the new migrations of the runtime and of a service to an open database. Return how many were applied."""
    count = await migrate(database, SCHEMA, "callboard")
    if definition.migrations is not None:
        count += await migrate(database, Path(definition.migrations), definition.contract.name)
    return count
