"""Password hashing with Argon2id in a small pool of threads. Verification takes the same time for unknown users."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
from anyio import to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from msgspec import Meta

from runtime import Overloaded, Struct
from services.auth.normal_forms import accepted_forms, canonical_password

T = TypeVar("T")

MAX_WAITING = 256
"""Calls that may wait for a thread. With the default cost, the last of them waits some seconds."""


class HashSettings(Struct):
    """The cost of Argon2id. The default is the second recommended option of RFC 9106, section 4."""

    memory_kib: Annotated[int, Meta(ge=64)] = 64 * 1024
    iterations: Annotated[int, Meta(ge=1)] = 3
    lanes: Annotated[int, Meta(ge=1, le=8)] = 4

    @property
    def weak(self) -> bool:
        """Whether the cost is below every recommendation of OWASP's Password Storage Cheat Sheet (7 MiB and 5 iterations, to 46 MiB and 1)."""
        return self.memory_kib < 7 * 1024 or self.memory_kib * self.iterations < 35 * 1024


class Passwords:
    """Hashes and verifies passwords, at most two at a time."""

    def __init__(self, settings: HashSettings) -> None:
        self._hasher = PasswordHasher(settings.iterations, settings.memory_kib, settings.lanes)
        self._threads = anyio.CapacityLimiter(2)
        self._dummy_hash: str | None = None

    async def hash(self, password: str) -> str:
        """Return the hash of a password.

        Raises:
            Overloaded: if too many calls wait for a thread.
        """
        return await self._run(self._hasher.hash, canonical_password(password))

    async def matches(self, password_hash: str | None, password: str) -> bool:
        """Return whether a password matches a hash.

        Args:
            password_hash: the hash of the user's password, or None if the user is unknown. The result is then False, but the call
                takes as long as with a hash.
            password: the password to verify.

        Raises:
            Overloaded: if too many calls wait for a thread.
        """
        if self._dummy_hash is None:
            self._dummy_hash = await self.hash("nobody has this password")
        for form in accepted_forms(password):
            try:
                await self._run(self._hasher.verify, password_hash or self._dummy_hash, form)
            except VerificationError:
                continue
            return password_hash is not None
        return False

    async def _run(self, function: Callable[..., T], *args: str) -> T:
        if self._threads.statistics().tasks_waiting >= MAX_WAITING:
            raise Overloaded("auth")
        return await to_thread.run_sync(function, *args, limiter=self._threads)
