"""Migrations: ordered SQL files that bring a service's database to the state that its code expects."""

import hashlib
import re
from pathlib import Path

from runtime.contract.errors import CallboardError, DefinitionError
from runtime.storage.database import Database

SCHEMA = Path(__file__).parent / "schema"
"""The runtime's own tables."""

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


class MigrationError(CallboardError):
    """A migration failed, or the database has one that the code does not know or knows differently."""


async def migrate(database: Database, folder: Path, group: str) -> int:
    """Apply the new files in a folder of files named `0001_what_it_does.sql`, in order. Return how many were applied.

    Each file is applied once and atomically, even if two processes start together.

    Args:
        group: the owner of the files. Each group has its own numbers.

    Raises:
        DefinitionError: if a file's name has no number, or if two files have the same number.
        MigrationError: if a file fails, was changed after it was applied, or is missing.
        DatabaseError: if the database failed.
    """
    files = _ordered(folder)
    await database.script(
        "CREATE TABLE IF NOT EXISTS callboard_migrations "
        "(grp TEXT NOT NULL, number BIGINT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (grp, number))"
    )
    rows = await database.fetch("SELECT number, digest FROM callboard_migrations WHERE grp = $1 ORDER BY number", group)
    applied: dict[int, str] = {row["number"]: row["digest"] for row in rows}
    unknown = applied.keys() - files.keys()
    if unknown:
        raise MigrationError(
            f"{database}: has migration {max(unknown):04d} of {group!r}, which {folder} lacks: it was written by a newer version; run that one"
        )
    count = 0
    for number, path in files.items():
        text = path.read_text(encoding="utf-8-sig")
        digest = _digest(text)
        if number in applied:
            if applied[number] not in (digest, _digest(f"\ufeff{text}")):  # a byte order mark does not count
                raise MigrationError(f"{path}: was changed after it was applied to {database}: undo that, and add a new file")
            continue
        try:
            # The row comes first: a second process fails on it, and then finds that the file has been applied
            await database.script(f"INSERT INTO callboard_migrations VALUES ('{group}', {number}, '{digest}');\n{text}")
        except CallboardError as error:
            again = await database.fetch_one(
                "SELECT digest FROM callboard_migrations WHERE grp = $1 AND number = $2", group, number
            )
            if again is None:
                raise MigrationError(f"{path}: {error}") from error
            continue  # another process has applied it
        count += 1
    return count


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ordered(folder: Path) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("[!.]*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise DefinitionError("expected a name such as 0001_create_accounts.sql", path)
        number = int(match[1])
        if number in files:
            raise DefinitionError(f"{files[number].name} has the same number", path)
        files[number] = path
    return files
