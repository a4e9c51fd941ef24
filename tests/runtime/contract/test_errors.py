"""Errors arrive as the same class with the same fields, and a stranger's as a `RemoteError`."""

from typing import Any

import msgspec
import pytest

import runtime.contract.errors as errors
from runtime import Contract, RemoteError, ServiceError
from runtime.contract.errors import ErrorData, rebuild_error


def _built_in(cls: type[ServiceError]) -> list[type[ServiceError]]:
    found = [subclass for subclass in cls.__subclasses__() if subclass.__module__ == errors.__name__]
    return [*found, *(deeper for subclass in found for deeper in _built_in(subclass))]


@pytest.mark.parametrize("cls", [cls for cls in _built_in(ServiceError) if cls is not RemoteError], ids=lambda cls: cls.__name__)
def test_each_error_of_the_runtime_arrives_as_itself(cls: type[ServiceError]) -> None:
    samples: dict[str, Any] = {"violations": (errors.Violation("/a", "b"),), "path": ("a", "b")}
    error = cls(*(samples.get(name, "text") for name in errors.error_fields(cls).__struct_fields__))
    wire = msgspec.json.decode(msgspec.json.encode(error.data()), type=ErrorData)
    rebuilt = rebuild_error(wire, lambda contract, code: None)
    assert type(rebuilt) is cls
    assert rebuilt == error


def test_a_remote_error_can_be_compared_and_kept_in_a_set() -> None:
    class Full(ServiceError):
        code, status = "full", 409
        seats: int

    Contract("bus").message(Full)
    first, second, other = (RemoteError(Full(seats).data()) for seats in (1, 1, 2))
    assert {first, second, other} == {first, other}
    assert first == second != other
    assert first.fields == {"seats": 1}
