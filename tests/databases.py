"""The services' databases on each engine."""

from collections.abc import Callable
from pathlib import Path

from runtime import Database
from runtime.storage.postgres import PostgresDatabase
from runtime.storage.sqlite import SqliteDatabase
from tests.postgres import shared_postgres

ENGINES = ("sqlite", "postgres")

Databases = Callable[[str], Database]
"""Returns a service's database, which is not open yet. All of a service's have the same content."""


def databases(engine: str, folder: Path) -> Databases:
    """Return the databases of the services on an engine, which begin empty."""
    if engine == "sqlite":
        return lambda service: SqliteDatabase(folder / f"{service}.sqlite", durable=False)
    url = shared_postgres().new_database()
    return lambda service: PostgresDatabase(url, service)
