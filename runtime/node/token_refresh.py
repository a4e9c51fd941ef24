"""The token refresher: the runtime's own service on every node, which keeps the verifier's keys and revocations fresh."""

from typing import ClassVar

from runtime.contract.errors import ServiceError
from runtime.contract.messages import Contract
from runtime.identity import SessionsRevoked, TokenSettings, Verifier, identity
from runtime.keys import KeyRing
from runtime.service.context import Context
from runtime.service.handlers import every, subscribes
from runtime.service.service import Service


class TokenRefresher(Service):
    """Asks the auth service for revocations every few seconds, and immediately after a signal that there are new ones."""

    contract: ClassVar[Contract] = Contract("runtime")
    calls: ClassVar[tuple[Contract, ...]] = (identity,)

    def __init__(self, verifier: Verifier, settings: TokenSettings) -> None:
        self._verifier = verifier
        self._settings = settings
        self._asked_at = float("-inf")

    @subscribes(broadcast=True)
    async def on_sessions_revoked(self, signal: SessionsRevoked, ctx: Context) -> None:
        """Fetch the new revocations."""
        if self._verifier.used:
            await self._verifier.learn_revocations()

    @every(seconds=0.5)
    async def refresh(self, ctx: Context) -> None:
        """Fetch revocations and keys when they are due, once a token has been verified on this node."""
        now = self.clock.monotonic()
        if self._verifier.used and now - self._asked_at >= self._settings.refresh_seconds:
            self._asked_at = now
            await self._verifier.learn_revocations()
        if self._verifier.used:
            await self._keep_fresh(self._verifier.own_keys)

    @every(seconds=0.5)
    async def refresh_others(self, ctx: Context) -> None:
        """Fetch the keys of other issuers when they are due. One that answers slowly does not delay revocations."""
        for ring in self._verifier.other_keys():
            await self._keep_fresh(ring)

    async def _keep_fresh(self, ring: KeyRing) -> None:
        if self.clock.monotonic() - ring.asked_at < self._settings.keys_seconds:
            return
        try:
            await ring.learn()
        except ServiceError as error:
            self.log.debug("the key set was not refreshed: %s", error)
