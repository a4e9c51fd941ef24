"""What the wallet publishes: balances, the ledger's entries, and holds. Money is integer cents."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Struct

wallet = Contract("wallet")

Cents = Annotated[int, Meta(ge=1, le=1_000_000)]
Kind = Literal["top-up", "ride"]
Limit = Annotated[int, Meta(ge=1, le=100)]


class Balance(Struct):
    """What a user has, and how much of it is held for rides under way."""

    balance_cents: int
    held_cents: int


class Entry(Struct):
    """One line of the ledger. The entries of a user sum to the balance; `cents` is negative for a charge."""

    id: UUID
    kind: Kind
    cents: int
    ride_id: str | None
    at: datetime


class Entries(Struct):
    """A page of entries, the newest first. `next` is the cursor of the page that follows."""

    items: tuple[Entry, ...]
    next: str | None


class HoldPlaced(Struct):
    """Money that is set aside. After `until`, a hold that no ride has confirmed is released."""

    id: str
    until: datetime


@wallet.message
class GetWallet(Request[Balance]):
    """How much do I have?"""


@wallet.message
class TopUp(Request[Entry]):
    """Put money into the wallet."""

    amount_cents: Cents


@wallet.message
class ListEntries(Request[Entries]):
    """What came and went?"""

    cursor: UUID | None = None
    limit: Limit = 50


@wallet.message
class Hold(Request[HoldPlaced]):
    """Set money of the user's aside."""

    cents: Cents


@wallet.message
class ReleaseHold(Request[None]):
    """Give held money back. A hold that is gone, or that a ride has confirmed, is no error and stays as it is."""

    hold_id: str


@wallet.message
class BalanceLow(Event):
    """After a ride was paid, too little is left to begin another."""

    user_id: str
    balance_cents: int


@wallet.message
class InsufficientFunds(ServiceError):
    """There is too little money in the wallet."""

    code, status = "insufficient-funds", 402
    available_cents: int
