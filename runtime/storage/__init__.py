"""The database port. `runtime.storage.sqlite` is its engine for SQLite."""

from runtime.storage.database import (
    ConstraintError,
    Database,
    DatabaseError,
    Guard,
    Row,
    Statement,
    StatementError,
    Superseded,
    Transaction,
)
from runtime.storage.migrations import MigrationError, migrate

__all__ = [
    "ConstraintError",
    "Database",
    "DatabaseError",
    "Guard",
    "MigrationError",
    "Row",
    "Statement",
    "StatementError",
    "Superseded",
    "Transaction",
    "migrate",
]
