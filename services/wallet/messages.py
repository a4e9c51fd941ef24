"""The contract of the wallet service: balances, ledger entries, and holds. Amounts of money are integers, in cents."""

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
    """The balance of a user, and how much of it is held for rides."""

    balance_cents: int
    held_cents: int


class Entry(Struct):
    """One entry of the ledger. The entries of a user add up to the balance. `cents` is negative for a charge."""

    id: UUID
    kind: Kind
    cents: int
    ride_id: str | None
    at: datetime


class Entries(Struct):
    """A page of entries, the newest first. `next` is the cursor of the next page."""

    items: tuple[Entry, ...]
    next: str | None


class HoldPlaced(Struct):
    """A hold on money. If no ride confirms it by `until`, it is released."""

    id: str
    until: datetime


@wallet.message
class GetWallet(Request[Balance]):
    """How much do I have?"""


@wallet.message
class TopUp(Request[Entry]):
    """Add money to the wallet."""

    amount_cents: Cents


@wallet.message
class ListEntries(Request[Entries]):
    """List the entries of the user's ledger."""

    cursor: UUID | None = None
    limit: Limit = 50


@wallet.message
class Hold(Request[HoldPlaced]):
    """Hold an amount of the user's money."""

    cents: Cents


@wallet.message
class ReleaseHold(Request[None]):
    """Release a hold. If it no longer exists or a ride has confirmed it, nothing changes and no error is raised."""

    hold_id: str


@wallet.message
class BalanceLow(Event):
    """After a ride was paid for, the balance is too low to start another."""

    user_id: str
    balance_cents: int


@wallet.message
class InsufficientFunds(ServiceError):
    """The wallet does not hold enough money."""

    code, status = "insufficient-funds", 402
    available_cents: int
