"""Parts of a service that has grown: classes that handle some of its messages."""

from typing import Any, Generic, TypeVar

S = TypeVar("S")


class Part(Generic[S]):
    """The base class of the parts of a service, which it lists as `parts = (Reports, Exports)`.

    A part is made once for each copy of the service, with the service. Its handlers are like the service's own: they share the
    mailbox, the database, and the settings. Write `class Reports(Part["Rides"])`, so that type checkers know `self.service`.

    Attributes:
        service: the running copy of the service.
    """

    def __init__(self, service: S) -> None:
        self.service: S = service


def part_of(service: Any, cls: type[Part[Any]]) -> Part[Any]:
    """Return the part of a running copy of a service, and make it if this is the first time."""
    made: dict[type[Part[Any]], Part[Any]] = service.__dict__.setdefault("_made_parts", {})
    if cls not in made:
        made[cls] = cls(service)
    return made[cls]
