"""Manifests, with which instances announce themselves."""

from typing import Any

import msgspec

from runtime.contract.access import Allow
from runtime.contract.rest import HttpBinding
from runtime.network.envelope import Address


class ErrorInfo(msgspec.Struct, frozen=True):
    """A service error that a request may end in. `schema` is the JSON Schema of its fields."""

    code: str
    status: int
    title: str
    schema: dict[str, Any] = {}


class RequestInfo(msgspec.Struct, frozen=True):
    """A request that the instance handles, with the JSON Schemas (2020-12) of the message and its reply."""

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
    """What a client can follow live: the signal that announces news, whose key is the user's id, and the request that lists it."""

    signal: str
    request: str


class Manifest(msgspec.Struct, frozen=True):
    """What one instance announces: its identity, what it handles and publishes, and which services it calls.

    Attributes:
        instance: a random id; each start has another one.
        schemas: the named types that the schemas of requests refer to, as `#/components/schemas/<service>.<Type>`.
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
        """The address of the instance."""
        return Address(self.service, self.node)


def announced(manifest: Manifest) -> dict[str, RequestInfo]:
    """Return what the instance can be asked for: its requests by their full names, and by their routes."""
    by_route = {info.http.route: info for info in manifest.requests if info.http is not None}
    return {info.name: info for info in manifest.requests} | by_route
