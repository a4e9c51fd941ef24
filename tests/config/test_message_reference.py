"""The reference of messages in the documentation."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from config.asyncapi import document
from config.message_reference import filled, reference
from runtime import Contract, Event, Service, Struct

PAGE = Path(__file__).parent.parent.parent / "docs" / "messages.md"


def test_the_documented_messages_are_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text, "docs/messages.md is out of date: run `make docs`"
    assert "| `ride_id` | text or null | `null` |" in text
    assert "| `battery` | a number from 0 to 100 |  |" in text
    assert "| rides | [stream.Head](#streamhead) | `callboard/1/stream/rides` | wallet, fleet, notices |" in text
    assert "| fleet | [fleet.ReservationLapsed](#fleetreservationlapsed) | rides |" in text


shop = Contract("shop")


class Item(Struct):
    """What is sold"""

    name: str
    count: Annotated[int, Meta(gt=0)] = 1


@shop.message
class Sold(Event):
    """Something was sold."""

    items: tuple[Item, ...]
    paid: Literal["cash", "card"]
    place: tuple[float, float]
    gift: bool = False


class Shop(Service):
    contract = shop


def test_types_in_messages_have_a_table_each() -> None:
    text = reference(document("Shop", "1", [Shop.definition]))
    assert "| `items` | an array, each item [shop.Item](#shopitem) |  |" in text
    assert '| `paid` | `"card"` or `"cash"` |  |' in text
    assert "| `place` | an array of a number, a number |  |" in text
    assert "| `gift` | `true` or `false` | `false` |" in text
    _, _, types = text.partition("## Types")
    assert "### shop.Item\n\nWhat is sold.\n\n| field |" in types
    assert "| `count` | an integer above 0 | `1` |" in types
