"""Messages of two contracts, and the assertion that a definition is refused: for the tests of definition errors."""

import re
from collections.abc import Callable

import pytest

from runtime import Contract, DefinitionError, Event, Request, Signal, Struct

shop = Contract("shop")
other = Contract("other")


class Item(Struct):
    id: str


@shop.message
class Buy(Request[Item]):
    id: str


@shop.message
class Sold(Event):
    id: str


@shop.message
class Bell(Signal):
    id: str


@other.message
class Look(Request[int]):
    id: str


def assert_refused(define: Callable[[], object], *parts: str) -> None:
    """Assert that `define` raises a DefinitionError that names a file and line, and whose text has all the parts."""
    with pytest.raises(DefinitionError) as caught:
        define()
    assert re.match(r"tests/\S+\.py:\d+: ", str(caught.value)), str(caught.value)
    for part in parts:
        assert part in str(caught.value)
