"""Passwords: Argon2id in a small pool of threads, and the same time for a user who does not exist."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
from anyio import to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from msgspec import Meta

from runtime import Overloaded, Struct

T = TypeVar("T")

WAITING = 256
"""How many may wait for a thread; with the default cost the last of them waits some seconds."""


class HashSettings(Struct):
    """Argon2id's cost (RFC 9106, section 4, second recommended option by default)."""

    memory_kib: Annotated[int, Meta(ge=64)] = 64 * 1024
    iterations: Annotated[int, Meta(ge=1)] = 3
    lanes: Annotated[int, Meta(ge=1, le=8)] = 4


class Passwords:
    """Hashes and verifies, at most two at a time; a long queue is refused."""

    def __init__(self, settings: HashSettings) -> None:
        self._hasher = PasswordHasher(settings.iterations, settings.memory_kib, settings.lanes)
        self._threads = anyio.CapacityLimiter(2)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        return await self._run(self._hasher.hash, password)

    async def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether the password fits. Without a hash (an unknown user) it takes as long and says no."""
        if self._nobody is None:
            self._nobody = await self.hash("nobody has this password")
        try:
            await self._run(self._hasher.verify, password_hash or self._nobody, password)
        except VerificationError:
            return False
        return password_hash is not None

    async def _run(self, function: Callable[..., T], *args: str) -> T:
        if self._threads.statistics().tasks_waiting >= WAITING:
            raise Overloaded("auth")
        return await to_thread.run_sync(function, *args, limiter=self._threads)
