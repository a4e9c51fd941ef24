"""What notices publishes: what a user should hear of, and the nudge that there is something new."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from runtime import Contract, Request, Signal, Struct

notices = Contract("notices")

Kind = Literal["ride-started", "ride-ended", "ride-aborted", "balance-low"]


class Notice(Struct):
    """Something that a user should hear of. `number` counts the user's notices from 1, without gaps."""

    id: str
    number: int
    kind: Kind
    text: str
    ride_id: str | None
    cents: int | None
    at: datetime


class NoticePage(Struct):
    """A page of notices, the newest first. `next` is the cursor of the page that follows."""

    items: tuple[Notice, ...]
    next: str | None


class Following(Struct):
    """What came after a number, the oldest first, and the number of the newest notice there is."""

    items: tuple[Notice, ...]
    last: int


@notices.message
class ListNotices(Request[NoticePage]):
    """What have I been told?"""

    cursor: int | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


@notices.message
class NoticesAfter(Request[Following]):
    """What came after the notice of that number? Without one nothing is listed: `last` says where to begin."""

    after: int | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 100


@notices.message(key="user_id", live=NoticesAfter)
class Noticed(Signal):
    """There is a new notice for a user."""

    user_id: str
