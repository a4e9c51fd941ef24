"""Tickets for `/live`: a browser's `EventSource` cannot send `Authorization`, so a page gets a ticket and puts it into the URL.

A ticket works once, for half a minute, at every gateway: it names the one that has made it, which keeps the access token behind it in
memory. A URL may be in logs and histories, so neither the token nor anything that works twice belongs into it.
"""

import re
from typing import NamedTuple

from runtime import Clock, Contract, Random, Request, ServiceError, Struct, Unauthenticated
from runtime.node.proxy import Proxy

SECONDS = 30
"""The seconds for which a ticket can be used."""
_MOST_OF_USER = 32
"""The tickets that a user may have at a time. A further one takes the place of the oldest."""
_MOST = 100_000
_TICKET = re.compile(r"(?P<gateway>[0-9a-f]{16})(?P<secret>[0-9a-f]{32})")
_ANSWERS_WITHIN = 2.0
_UNUSABLE = "the ticket was used already, is older than half a minute, or is none: get another one with POST /live/tickets"

gateways = Contract("gateways")
"""The requests that gateways make to each other."""


class Redeemed(Struct):
    """What a ticket was made for. `token` is an access token, or None if the ticket does not work."""

    token: str | None

    def __repr__(self) -> str:
        return "Redeemed(***)"


@gateways.message
class RedeemTicket(Request[Redeemed]):
    """Take the access token for which a gateway has made a ticket. Gateways ask each other."""

    secret: str

    def __repr__(self) -> str:
        return "RedeemTicket(***)"


class Ticket(Struct):
    """A ticket.

    Attributes:
        expires_in: the seconds for which it can be used.
    """

    ticket: str
    expires_in: int


class _Held(NamedTuple):
    user: str
    token: str
    until: float


class Tickets:
    """The tickets of one gateway.

    Args:
        proxy: asks the gateway that has made a ticket.
    """

    def __init__(self, proxy: Proxy, clock: Clock, random: Random) -> None:
        self._proxy = proxy
        self._clock = clock
        self._random = random
        self._held: dict[str, _Held] = {}
        proxy.answer(RedeemTicket, self._answer)

    def __repr__(self) -> str:
        return f"<Tickets {len(self._held)} held>"

    async def issue(self, token: str) -> Ticket:
        """Return a ticket for the user of an access token.

        Raises:
            Unauthenticated: if the token is not valid.
            ServiceError: if it cannot be verified now.
        """
        user = (await self._proxy.identify(token)).subject
        self._forget_old()
        own = [secret for secret, held in self._held.items() if held.user == user]
        for secret in own[: max(len(own) - _MOST_OF_USER + 1, 0)]:
            del self._held[secret]
        while len(self._held) >= _MOST:
            del self._held[next(iter(self._held))]
        secret = self._random.hex(32)
        self._held[secret] = _Held(user, token, self._clock.monotonic() + SECONDS)
        return Ticket(f"{self._proxy.instance}{secret}", SECONDS)

    async def redeem(self, ticket: str) -> str:
        """Return the access token for which a ticket was made, which does not work again.

        Raises:
            Unauthenticated: if it does not work.
        """
        match = _TICKET.fullmatch(ticket)
        if match is None:
            raise Unauthenticated(_UNUSABLE)
        if match["gateway"] == self._proxy.instance:
            token = self._take(match["secret"])
        else:
            try:
                answer = await self._proxy.ask_instance(match["gateway"], RedeemTicket(match["secret"]), _ANSWERS_WITHIN)
            except ServiceError:
                answer = None
            token = None if answer is None else answer.token
        if token is None:
            raise Unauthenticated(_UNUSABLE)
        return token

    async def _answer(self, message: RedeemTicket) -> Redeemed:
        return Redeemed(self._take(message.secret))

    def _take(self, secret: str) -> str | None:
        held = self._held.pop(secret, None)
        return None if held is None or held.until <= self._clock.monotonic() else held.token

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._held and self._held[oldest := next(iter(self._held))].until <= now:
            del self._held[oldest]
