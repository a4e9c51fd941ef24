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
    """The notices after a given number, the oldest first.

    Attributes:
        last: the number of the user's newest notice.
        last_id: the id of that notice; empty if there is none.
        forked_at: set if the service does not have the notice that the caller has seen last, because it was restored from a
            backup. The notices begin after this number, where its history parts from what the caller has seen.
    """

    items: tuple[Notice, ...]
    last: int
    last_id: str = ""
    forked_at: int | None = None


@notices.message
class ListNotices(Request[NoticePage]):
    """List the user's notices."""

    cursor: int | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


@notices.message
class NoticesAfter(Request[Following]):
    """List the notices after a number. Without a number, no notices are listed, and `last` is the number to start from.

    Attributes:
        after_id: the id of the notice with that number, if the caller knows it. If it is another one here, the reply says where
            the history parts.
    """

    after: int | None = None
    after_id: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 100


@notices.message(key="user_id", live=NoticesAfter)
class Noticed(Signal):
    """A user has a new notice."""

    user_id: str
