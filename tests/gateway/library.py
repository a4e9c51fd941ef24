"""A service whose messages are renamed, recursive, and generic."""

from typing import Generic, TypeVar

from msgspec import UNSET, UnsetType

from runtime import ANYONE, Context, Contract, Request, Service, Struct, handles

T = TypeVar("T")

library = Contract("library")


class Shelf(Struct):
    """A shelf, which may have others inside."""

    name: str
    inner: "tuple[Shelf, ...]" = ()


class Page(Struct, Generic[T], rename="camel"):
    """Some of many."""

    items: tuple[T, ...]
    next_page: str | None = None


@library.message
class ChangeShelf(Request[Shelf], rename="camel"):
    """Change a shelf."""

    shelf_id: str
    new_name: str | UnsetType | None = UNSET
    under_shelf: Shelf | None = None


@library.message
class FindShelves(Request[Page[Shelf]], rename="camel"):
    """Find shelves."""

    first_letter: str = "a"


class Library(Service):
    """Answers with what it was sent."""

    contract = library

    @handles(http="PATCH /shelves/{shelf_id}", allow=ANYONE)
    async def change(self, message: ChangeShelf, ctx: Context) -> Shelf:
        name = "unset" if message.new_name is UNSET else "null" if message.new_name is None else str(message.new_name)
        return Shelf(name, () if message.under_shelf is None else (message.under_shelf,))

    @handles(http="GET /shelves", allow=ANYONE)
    async def find(self, message: FindShelves, ctx: Context) -> Page[Shelf]:
        return Page((Shelf(message.first_letter),))
