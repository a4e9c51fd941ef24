"""The contract of the notices service: notices for users, and the signal that there is a new one."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from runtime import Contract, Request, Signal, Struct

notices = Contract("notices")

Kind = Literal["ride-started", "ride-ended", "ride-aborted", "balance-low"]


class Notice(Struct):
    """A notice for a user. `number` counts the user's notices from 1, without gaps."""

    id: str
    number: int
    kind: Kind
    text: str
    ride_id: str | None
    cents: int | None
    at: datetime


class NoticePage(Struct):
    """A page of notices, the newest first. `next` is the cursor of the next page."""

    items: tuple[Notice, ...]
    next: str | None


class Following(Struct):
    """The notices after a given number, the oldest first. `last` is the number of the user's newest notice."""

    items: tuple[Notice, ...]
    last: int


@notices.message
class ListNotices(Request[NoticePage]):
    """List the user's notices."""

    cursor: int | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


@notices.message
class NoticesAfter(Request[Following]):
    """List the notices after a number. Without a number, no notices are listed, and `last` is the number to start from."""

    after: int | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 100


@notices.message(key="user_id", live=NoticesAfter)
class Noticed(Signal):
    """A user has a new notice."""

    user_id: str
