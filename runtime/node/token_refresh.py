"""The token refresher: the runtime's own service on every node, which keeps the verifier's keys and revocations fresh."""

from typing import ClassVar

from runtime.contract.errors import ServiceError
from runtime.contract.messages import Contract
from runtime.identity import SessionsRevoked, TokenSettings, Verifier, identity
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
        if not self._verifier.used:
            return
        now = self.clock.monotonic()
        if now - self._asked_at >= self._settings.refresh_seconds:
            self._asked_at = now
            await self._verifier.learn_revocations()
        if now - self._verifier.keys_asked_at >= self._settings.keys_seconds:
            try:
                await self._verifier.learn_keys()
            except ServiceError as error:
                self.log.debug("the key set was not refreshed: %s", error)
