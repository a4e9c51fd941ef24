"""Manifests: what an instance announces of itself."""

from typing import Any

import msgspec

from runtime.contract.access import Allow
from runtime.contract.rest import HttpBinding
from runtime.network.envelope import Address


class ErrorInfo(msgspec.Struct, frozen=True):
    """A service error that a request may end in. `schema` describes its fields."""

    code: str
    status: int
    title: str
    schema: dict[str, Any] = {}


class RequestInfo(msgspec.Struct, frozen=True):
    """A request that the instance handles, with JSON Schemas (2020-12) of the message and its reply."""

    name: str
    allow: Allow
    http: HttpBinding | None = None
    idempotent: bool = False
    once: bool = False
    key: str | None = None
    summary: str = ""
    description: str = ""
    request: dict[str, Any] = {}
    reply: dict[str, Any] = {}
    errors: tuple[ErrorInfo, ...] = ()


class LiveInfo(msgspec.Struct, frozen=True):
    """Something that clients should see at once: the signal (its key is the user's id), and the request that lists it."""

    signal: str
    request: str


class Manifest(msgspec.Struct, frozen=True):
    """What one instance announces: who it is, what it handles and publishes, and to whom it listens.

    `schemas` holds the named types that the requests' schemas refer to, as `#/components/schemas/<service>.<Type>`.
    """

    service: str
    node: str
    instance: str
    version: str = "0"
    requests: tuple[RequestInfo, ...] = ()
    events: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    live: LiveInfo | None = None
    calls: tuple[str, ...] = ()
    schemas: dict[str, Any] = {}

    @property
    def address(self) -> Address:
        return Address(self.service, self.node)
