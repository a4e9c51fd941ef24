"""Strategies that generate the types that a message may have, together with the values that these types admit."""

import enum
import string
import types
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from runtime import Request, Struct

T = TypeVar("T")

PROPERTY = settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
"""The settings of properties: they do not depend on how fast the machine is."""


class Colour(enum.Enum):
    RED = "red"
    NONE = ""
    ODD = "a/b ü"


class Level(enum.IntEnum):
    LOW = -1
    HIGH = 7


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Tree(Struct):
    """A recursive struct."""

    name: str
    children: "tuple[Tree, ...]" = ()
    parent: "Tree | None" = None


class Page(Struct, Generic[T]):
    """A generic struct."""

    items: tuple[T, ...]
    first: T | None = None


class Cat(Struct, tag="cat"):
    lives: int


class Dog(Struct, tag="dog"):
    name: str
    weight: Decimal = Decimal(1)


class Renamed(Struct, rename="camel"):
    scooter_id: str
    ends_at: datetime | None = None
    not_given: int | UnsetType | None = UNSET


class Row(Struct, array_like=True):
    at: datetime
    ratio: float = 0.5


class Shape(NamedTuple):
    """A type, and the values of it."""

    annotation: Any
    values: st.SearchStrategy[Any]


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))) | st.just(UTC)
_FIRST, _LAST = datetime(2, 1, 1), datetime(9998, 1, 1)  # noqa: DTZ001  # Hypothesis adds the zones
moments = st.datetimes(min_value=_FIRST, max_value=_LAST, timezones=zones)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
trees = st.recursive(
    st.builds(Tree, st.text()),
    lambda inner: st.builds(Tree, st.text(), st.lists(inner, max_size=2).map(tuple), st.none() | inner),
)

SCALARS = (
    Shape(int, st.integers(-(2**63), 2**63 - 1)),
    Shape(Annotated[int, Meta(ge=-5, lt=100)], st.integers(-5, 99)),
    Shape(float, st.floats(allow_nan=False, allow_infinity=False)),
    Shape(Annotated[float, Meta(gt=0)], st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
    Shape(bool, st.booleans()),
    Shape(str, st.text()),
    Shape(Annotated[str, Meta(min_length=1, max_length=3)], st.text(min_size=1, max_size=3)),
    Shape(Annotated[str, Meta(pattern="^[a-z]+$")], st.text(string.ascii_lowercase, min_size=1)),
    Shape(bytes, st.binary()),
    Shape(datetime, moments),
    Shape(Annotated[datetime, Meta(tz=True)], moments),
    Shape(Annotated[datetime, Meta(tz=False)], st.datetimes()),
    Shape(date, st.dates()),
    Shape(time, st.times(timezones=zones | st.none())),
    Shape(timedelta, st.timedeltas()),
    Shape(UUID, st.uuids()),
    Shape(Decimal, decimals),
    Shape(Colour, st.sampled_from(Colour)),
    Shape(Level, st.sampled_from(Level)),
    Shape(Rights, st.sampled_from([Rights.READ, Rights.WRITE, Rights.READ | Rights.WRITE])),
    Shape(Literal["a", "b c"], st.sampled_from(["a", "b c"])),
    Shape(Literal[1, 2], st.sampled_from([1, 2])),
)
"""Types that have a text form, in a path or query."""

STRUCTS = (
    Shape(Tree, trees),
    Shape(Cat | Dog, st.builds(Cat, st.integers(0, 9)) | st.builds(Dog, st.text(), decimals)),
    Shape(Renamed, st.builds(Renamed, st.text(), moments | st.none(), st.none() | st.just(UNSET) | st.integers(0, 9))),
    Shape(Row, st.builds(Row, moments, st.floats(allow_nan=False, allow_infinity=False))),
    Shape(Page[Renamed], st.builds(Page, st.builds(Renamed, st.text()).map(lambda item: (item,)), st.none())),
    Shape(int | str, st.integers(-(2**63), 2**63 - 1) | st.text()),
    Shape(int | float | None, st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)),
)


def _optional(shape: Shape) -> Shape:
    return Shape(shape.annotation | None, st.none() | shape.values)


def _many(shape: Shape) -> Shape:
    return Shape(tuple[shape.annotation, ...], st.lists(shape.values, max_size=3).map(tuple))  # type: ignore[name-defined]


def _bounded(shape: Shape) -> Shape:
    many = tuple[shape.annotation, ...]  # type: ignore[name-defined]
    return Shape(Annotated[many, Meta(min_length=1, max_length=2)], st.lists(shape.values, min_size=1, max_size=2).map(tuple))


def _set(shape: Shape) -> Shape:
    return Shape(frozenset[shape.annotation], st.frozensets(shape.values, max_size=3))  # type: ignore[name-defined]


def _pair(shape: Shape) -> Shape:
    return Shape(tuple[shape.annotation, bool], st.tuples(shape.values, st.booleans()))  # type: ignore[name-defined]


def _page(shape: Shape) -> Shape:
    return Shape(Page[shape.annotation], st.builds(Page, st.lists(shape.values, max_size=2).map(tuple), st.none() | shape.values))  # type: ignore[name-defined]


_COMPOSITES: tuple[Callable[[Shape], Shape], ...] = (_optional, _many, _bounded, _set, _pair, _page)

scalars: st.SearchStrategy[Shape] = st.sampled_from(SCALARS)
texts: st.SearchStrategy[Shape] = scalars | st.builds(
    lambda make, shape: make(shape), st.sampled_from([_many, _bounded, _set]), scalars
)
"""Types of parameters."""
anything: st.SearchStrategy[Shape] = st.recursive(
    scalars | st.sampled_from(STRUCTS),
    lambda inner: st.builds(lambda make, shape: make(shape), st.sampled_from(_COMPOSITES), inner),
    max_leaves=3,
)
"""Types of fields in a body, a reply, an event, or an error."""
renames = st.sampled_from([None, "camel", "kebab", "pascal", "upper"])


def define(base: Any, fields: dict[str, Any], rename: str | None = None, **options: Any) -> Any:
    """Return a message class with these fields, as a module would define it.

    Args:
        base: `Request[…]`, `Event`, or `Signal`.
    """
    body = {"__annotations__": fields, "__module__": __name__, **options}
    keywords = {} if rename is None else {"rename": rename}
    return types.new_class("Generated", (base,), keywords, lambda namespace: namespace.update(body))


def request_of(reply: Any) -> Any:
    """Return the base class of requests with a reply of this type."""
    generic: Any = Request
    return generic[reply]


def to_texts(value: Any) -> list[str]:
    """Return the texts that a client puts into a URL for a value."""
    if isinstance(value, tuple | frozenset):
        return [text for item in value for text in to_texts(item)]
    plain = msgspec.to_builtins(value)
    return [str(plain).lower() if isinstance(plain, bool) else repr(plain) if isinstance(plain, float) else str(plain)]
