"""The names and the descriptions of types in the published schemas."""

import enum
from typing import Annotated, Any, Generic, TypeVar

from msgspec import Meta

from runtime import Event, Struct
from runtime.contract.schema import Schemas
from runtime.durable.cursor import digest_of
from tests.runtime.contract import shapes
from tests.runtime.contract.shapes import Tree, define

T = TypeVar("T")


class Renamed(Struct):
    """Another type than the one of `shapes`, with the same name."""

    number: int


class Box(Struct, Generic[T]):
    """A generic struct."""

    content: T


class Sparse(enum.Flag):
    LOW = 1
    HIGH = 8


class Kept(enum.IntFlag):
    READ = 1
    WRITE = 2


def test_types_of_the_same_name_get_different_names() -> None:
    schemas = Schemas("fleet")
    assert schemas.of(Box[shapes.Renamed]) == {"$ref": "#/components/schemas/fleet.Box_Renamed_"}
    assert schemas.of(Box[Renamed])["$ref"].endswith(".Box_tests.runtime.contract.test_schema.Renamed_")
    assert schemas.of(Renamed) == {"$ref": "#/components/schemas/fleet.tests.runtime.contract.test_schema.Renamed"}
    assert schemas.of(Renamed) == schemas.of(Renamed)
    assert all(name.startswith("fleet.") for name in schemas.named)
    assert not any("title" in schema for schema in schemas.named.values()), "generators would prefer it to the name"


def test_events_with_types_of_the_same_name_have_a_digest() -> None:
    one, other = (define(Event, {"box": Box[cls]}) for cls in (shapes.Renamed, Renamed))  # type: ignore[valid-type]
    digests = {digest_of({"A": a, "B": b}) for a in (one, other) for b in (one, other)}
    assert len(digests) == 4
    assert digest_of({"A": one, "B": other}) == digest_of({"B": other, "A": one})


def test_a_recursive_type_refers_to_itself() -> None:
    schemas = Schemas("fleet")
    schemas.of(Tree)
    assert schemas.named["fleet.Tree"]["properties"]["children"]["items"] == {"$ref": "#/components/schemas/fleet.Tree"}


def test_the_schema_of_a_flag_has_its_sums() -> None:
    schemas = Schemas("fleet")
    for cls in (shapes.Rights, Sparse, Kept):
        schemas.of(cls)
    assert schemas.named["fleet.Rights"] == {"type": "integer", "minimum": 0, "maximum": 3}
    assert schemas.named["fleet.Sparse"] == {"type": "integer", "enum": [0, 1, 8, 9]}
    assert schemas.named["fleet.Kept"]["maximum"] == 2**63 - 1, "it keeps bits that it does not name"


def test_integers_say_how_many_bits_they_need() -> None:
    def schema(**bounds: Any) -> dict[str, Any]:
        return Schemas("fleet").of(Annotated[int, Meta(**bounds)])

    assert schema(ge=0) == {"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "format": "int64"}
    assert schema(ge=0, le=100) == {"type": "integer", "minimum": 0, "maximum": 100}
    assert schema(gt=0, lt=2**40) == {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2**40, "format": "int64"}
