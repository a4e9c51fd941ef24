"""A transaction as the context manager that commits it: what the engines have in common."""

from abc import abstractmethod
from contextvars import Token
from types import TracebackType

from runtime.contract.errors import UsageError
from runtime.storage.database import Database, Transaction


class ManagedTransaction(Transaction):
    """Commits when its block ends, and rolls back when the block raises. The task that made it sees it in `Database.current`."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._managed_by = database
        self._token: Token[Transaction | None] | None = None

    async def __aenter__(self) -> Transaction:
        if self._managed_by.running() is not None:
            raise UsageError(
                "this task is in a transaction on this database already: use the handler's tx instead of self.db.transaction()"
            )
        self._token = self._managed_by.current.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database = self._managed_by
        try:
            if error is None:
                try:
                    self.require_finished()
                    if self.events:
                        database.append(self)
                except BaseException:  # of the checks and of `before_commit`, which is not ours
                    await self._roll_back()
                    raise
                await self._commit()
            else:
                await self._roll_back()
        finally:
            self.made.close()
            assert self._token is not None
            database.current.reset(self._token)
            if self.committed and self.events and database.after_commit is not None:
                database.after_commit(self)

    @abstractmethod
    async def _commit(self) -> None:
        """Commit, whatever cancels the caller. Raises `DatabaseError`."""

    @abstractmethod
    async def _roll_back(self) -> None:
        """Roll back, whatever cancels the caller."""
