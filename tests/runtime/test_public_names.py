"""The public import paths: every name exists, and every class can be constructed and has a docstring."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import ANYONE, Clock, Context, Contract, ManualClock, Request, Service, ServiceError, handles
from runtime.contract.errors import ErrorData
from runtime.network import Address, Head, Manifest
from runtime.testing import CrashPoints, Faults
from transports.memory import MemoryTransport

PACKAGES = ("runtime", "runtime.network", "runtime.storage", "runtime.storage.sqlite", "runtime.testing")

example = Contract("example")


@example.message
class Ask(Request[None]):
    """A request of the test."""


@example.message
class Declined(ServiceError):
    """An error of the test."""

    code, status = "declined", 409


class Example(Service):
    """A service of the test."""

    contract = example

    @handles(allow=ANYONE)
    async def ask(self, message: Ask, ctx: Context) -> None:
        """Do nothing."""


def node() -> runtime.Node:
    return runtime.Node([Example], MemoryTransport())


ARGUMENTS: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    "Address": lambda _: ("wallet", "node-1"),
    "Body": lambda _: ("image/png",),
    "CallCycle": lambda _: (("rides@node-1",),),
    "Context": lambda _: (node().client("test", (example,)).host,),
    "Contract": lambda _: ("wallet",),
    "Cookie": lambda _: ("session",),
    "CrashingDatabase": lambda path: (runtime_sqlite().SqliteDatabase(path / "x.sqlite"), CrashPoints()),
    "DatabaseUnavailable": lambda _: ("wallet",),
    "DeadlineExceeded": lambda _: ("wallet",),
    "Draining": lambda _: ("wallet",),
    "Envelope": lambda _: ("request", "1", "wallet.Hold"),
    "ErrorInfo": lambda _: ("wallet.no-funds", 402, "Too little money"),
    "FaultyTransport": lambda _: (MemoryTransport(), Faults(), 1),
    "Guard": lambda _: ("UPDATE accounts SET cents = 0", ()),
    "Head": lambda _: ("epoch", 1),
    "Header": lambda _: ("If-Match",),
    "HttpBinding": lambda _: ("GET", "/wallet", 200),
    "Identity": lambda _: ("u1", "rider", "s1", "t1", Clock().now(), "k1"),
    "InstanceLost": lambda _: ("wallet",),
    "InternalError": lambda _: ("0123",),
    "Invalid": lambda _: ((runtime.Violation("/cents", "expected an integer"),),),
    "Kit": lambda _: (MemoryTransport,),
    "LiveInfo": lambda _: ("notices.Noticed", "notices.NoticesAfter"),
    "Malformed": lambda _: ("the body is empty",),
    "Manifest": lambda _: ("wallet", "node-1", "0123"),
    "Member": lambda _: (Manifest("wallet", "node-1", "0123"),),
    "NoInstance": lambda _: ("wallet",),
    "Node": lambda _: ([Example], MemoryTransport()),
    "Overloaded": lambda _: ("wallet",),
    "Part": lambda _: (Example(),),
    "Random": lambda _: (ManualClock(),),
    "Registry": lambda _: (Clock(), runtime.Random(Clock()), lambda service: None),
    "RemoteError": lambda _: (ErrorData("wallet", "no-funds", 402, "Too little money"),),
    "RequestInfo": lambda _: ("wallet.Hold", ANYONE),
    "SqliteDatabase": lambda path: (path / "x.sqlite",),
    "SqliteFolder": lambda path: (path,),
    "Topic": lambda _: ("signal", "wallet"),
    "UnknownRequest": lambda _: ("wallet.Hold",),
    "Unreachable": lambda _: ("wallet",),
    "UnstorableValue": lambda _: (1, 2**63, "an integer of 65 bits"),
    "ByteStream": lambda _: ("0123",),
    "Upload": lambda _: ("a.png", "image/png", b""),
    "Violation": lambda _: ("/cents", "expected an integer"),
}
"""The arguments of the classes that need some."""
ABSTRACT = {"Database", "Transaction", "Transport"}
"""Ports, of which there are several implementations."""
SUBCLASSED: dict[str, type[Any]] = {"Service": Example, "ServiceError": Declined}
"""Classes that are only useful as a base."""


def runtime_sqlite() -> Any:
    return importlib.import_module("runtime.storage.sqlite")


def public_names() -> list[tuple[str, str]]:
    return [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), public_names())
async def test_a_public_name(package: str, name: str, tmp_path: Path) -> None:
    found = getattr(importlib.import_module(package), name)
    if inspect.isfunction(found):
        assert inspect.getdoc(found), f"{package}.{name} has no docstring"
    if not inspect.isclass(found):
        return
    assert vars(found).get("__doc__"), f"{package}.{name} has no docstring"
    assert inspect.isabstract(found) == (name in ABSTRACT), f"{package}.{name} cannot be constructed"
    if not inspect.isabstract(found):
        arguments = ARGUMENTS[name](tmp_path) if name in ARGUMENTS else ()
        made = SUBCLASSED.get(name, found)(*arguments)
        assert isinstance(made, found)
        assert repr(made)


def test_each_package_lists_what_it_defines_or_exports_in_order() -> None:
    for package in PACKAGES:
        module = importlib.import_module(package)
        assert list(module.__all__) == sorted(set(module.__all__), key=lambda name: (not name.isupper(), name[0].islower(), name))


def test_addresses_and_heads_are_values() -> None:
    assert str(Address("wallet", "node-1")) == "wallet@node-1"
    assert Head("epoch", 1) == Head("epoch", 1)
