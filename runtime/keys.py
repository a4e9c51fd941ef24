"""The public keys of an issuer of tokens, as one node knows them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from runtime.clock import Clock
from runtime.contract.errors import ServiceError, Unreachable

if TYPE_CHECKING:
    from jwt import PyJWK

_PAUSE = 5.0
"""The seconds after an answer in which tokens with unknown keys cause no further request for the keys."""
_PAUSE_WITHOUT_KEYS = 2.0
"""The same, while no key is known."""


class KeyRing:
    """The public keys of one issuer, by their ids.

    Args:
        clock: the node's clock.
        issuer: who has the keys, for errors.
        fetch: returns the present keys. Raises ServiceError.

    Attributes:
        keys: the keys of the last answer. They remain valid while the issuer cannot be reached.
        asked_at: when they were last requested, on the clock's `monotonic` scale.
    """

    def __init__(self, clock: Clock, issuer: str, fetch: Callable[[], Awaitable[Mapping[str, "PyJWK"]]]) -> None:
        self.keys: Mapping[str, PyJWK] = {}
        self.asked_at: float = float("-inf")
        self._clock = clock
        self._issuer = issuer
        self._fetch = fetch
        self._accepted: set[bytes] = set()
        self._failure: ServiceError | None = None
        self._learning = asyncio.Lock()

    async def learn(self) -> None:
        """Fetch the keys, one request at a time. One that is missing from the answer is no longer accepted."""
        async with self._learning:
            await self._learn()

    async def _learn(self) -> None:
        try:
            found = await self._fetch()
        except ServiceError as error:
            self._failure = error
            raise
        except BaseException:  # also a cancellation
            self._failure = Unreachable(self._issuer)
            raise
        finally:
            self.asked_at = self._clock.monotonic()
        self.keys, self._failure = found, None
        self._accepted = {fingerprint(key) for key in found.values()}

    def accepts(self, fingerprint: bytes) -> bool:
        """Return whether a key with this fingerprint is among the keys."""
        return fingerprint in self._accepted

    async def key(self, kid: str) -> "PyJWK | None":
        """Return a key, or None if there is none with this id.

        If it is unknown, the keys are fetched, one request at a time and with a pause after each. So many forged tokens cost the
        issuer one request, and a new key is still known within seconds.

        Raises:
            ServiceError: if the last request failed.
        """
        if kid not in self.keys:
            async with self._learning:
                if kid not in self.keys:
                    pause = _PAUSE if self.keys else _PAUSE_WITHOUT_KEYS
                    if self._clock.monotonic() - self.asked_at >= pause:
                        await self._learn()
                    elif self._failure is not None:
                        raise self._failure.with_traceback(None)
        return self.keys.get(kid)


def fingerprint(key: "PyJWK") -> bytes:
    """Return what identifies a public key, whatever its id."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public: bytes = key.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return public
