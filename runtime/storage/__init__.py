"""The database port. `runtime.storage.sqlite` is its engine for SQLite."""

from runtime.storage.database import (
    ConstraintError,
    Database,
    DatabaseError,
    Guard,
    MissingTable,
    Row,
    Statement,
    StatementError,
    Superseded,
    Transaction,
)
from runtime.storage.values import UnstorableValue

__all__ = [
    "ConstraintError",
    "Database",
    "DatabaseError",
    "Guard",
    "MissingTable",
    "Row",
    "Statement",
    "StatementError",
    "Superseded",
    "Transaction",
    "UnstorableValue",
]
