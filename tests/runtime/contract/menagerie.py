"""A service whose messages have a field of every type that a message may have, and a subscriber of it."""

from typing import Any

from hypothesis import strategies as st

from runtime import (
    Contract,
    Event,
    ServiceError,
    Signal,
    Struct,
)
from tests.runtime.contract.shapes import SCALARS, STRUCTS, define, request_of

menagerie = Contract("menagerie")
keeper = Contract("keeper")

_SHAPES = SCALARS + STRUCTS
_FIELDS = {f"value_{number}": shape.annotation for number, shape in enumerate(_SHAPES)}
values: st.SearchStrategy[tuple[Any, ...]] = st.tuples(*(shape.values for shape in _SHAPES))
"""A value for each field, in order."""

All: Any = define(Struct, _FIELDS, "camel", name="All")
Echo: Any = menagerie.message(define(request_of(All), _FIELDS, "camel", name="Echo"))
Fail: Any = menagerie.message(define(request_of(None), _FIELDS, "camel", name="Fail"))
Tell: Any = menagerie.message(define(request_of(None), _FIELDS, "camel", name="Tell"))
Call: Any = menagerie.message(define(request_of(None), {"key": str, **_FIELDS}, "camel", name="Call"))
Told: Any = menagerie.message(define(Event, _FIELDS, "camel", name="Told"))
Called: Any = menagerie.message(key="key")(define(Signal, {"key": str, **_FIELDS}, "camel", name="Called"))


class _Failed(ServiceError):
    """It failed."""

    code, status = "failed", 409


Failed: Any = menagerie.message(
    type("Failed", (ServiceError,), {"code": "failed", "status": 409, "__annotations__": _FIELDS, "__module__": __name__})
)


def fields_of(message: Any) -> tuple[Any, ...]:
    """Return the values of the generated fields of a message or an error."""
    return tuple(getattr(message, name) for name in _FIELDS)
