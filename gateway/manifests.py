"""What the gateway knows about services: the manifests of live instances, and the last ones of services that are away.

A manifest comes from another process, of another version or another author. One that does not hold together is refused when
it arrives, so that it cannot break the routes or the OpenAPI document of the others.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from gateway.openapi import document
from gateway.route_owners import RouteOwners
from gateway.routing import Routes
from runtime.contract.rest import HttpBinding, route_fault
from runtime.network import Address, LiveInfo, Manifest, RequestInfo
from runtime.network.registry import Registry
from runtime.telemetry import Metrics

_log = logging.getLogger("callboard.gateway")

_REFERENCE = "#/components/schemas/"
_ONE = ("items", "additionalProperties", "contains", "not", "propertyNames")
"""The keywords of a JSON Schema whose value is a schema (JSON Schema 2020-12, section 10)."""
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "dependentSchemas")


class Manifests:
    """The manifests that the gateway serves.

    Args:
        expects: the services whose routes have to be known before the gateway is ready.
        owners: admits the routes that belong to the service that announces them.

    Attributes:
        live: a manifest of each service that has a live instance.
        absent: the last manifests of services that have none. Their routes stay, because they may come back.
    """

    def __init__(self, registry: Registry, metrics: Metrics, expects: Sequence[str], owners: RouteOwners) -> None:
        self.live: dict[str, Manifest] = {}
        self.absent: list[Manifest] = []
        self._registry = registry
        self._metrics = metrics
        self._expects = expects
        self._owners = owners
        self._known: dict[str, Manifest] = {}
        self._checked: dict[Address, tuple[Manifest, bool]] = {}
        registry.watch(self.update)
        self.update()

    def update(self) -> None:
        """Take over the manifests of the live instances."""
        checked: dict[Address, tuple[Manifest, bool]] = {}
        for member in self._registry:
            manifest = member.manifest
            known = self._checked.get(member.address)
            checked[member.address] = known if known is not None and known[0] is manifest else (manifest, self._check(manifest))
        self._checked = checked
        newest = {manifest.service: manifest for manifest, accepted in checked.values() if accepted}
        self.live = {manifest.service: manifest for manifest in self._owners.admit(newest.values())}
        self._known |= self.live
        self.absent = [manifest for service, manifest in self._known.items() if service not in self.live]

    def missing(self) -> list[str]:
        """Return the services that the gateway waits for before it is ready. If it expects none, it waits for any with routes."""
        if self._expects:
            return [service for service in self._expects if service not in self._known]
        return [] if any(info.http for manifest in self._known.values() for info in manifest.requests) else ["any service"]

    def routes(self) -> Routes:
        """Return the routes of all known services. Those of a service that is away stay its own, also if they are not known."""
        return Routes(self.live.values(), self.absent, self._owners.routes(), self._owners.prefixes)

    def feeds(self) -> dict[str, LiveInfo]:
        """Return what each service that is live or expected marks as `live`, by service."""
        of_absent = {manifest.service: manifest for manifest in self.absent if manifest.service in self._expects}
        return {service: manifest.live for service, manifest in (of_absent | self.live).items() if manifest.live is not None}

    def _check(self, manifest: Manifest) -> bool:
        fault = manifest_fault(manifest)
        if fault is not None:
            self._metrics.count("manifests_refused_total", service=manifest.service)
            _log.error(
                "the manifest of %s on %s is refused, and its routes are not served: %s", manifest.service, manifest.node, fault
            )
        return fault is None


def manifest_fault(manifest: Manifest) -> str | None:
    """Return what is wrong with a manifest, or None if the gateway can serve it."""
    try:
        fault = next(_faults(manifest), None)
        if fault is None:
            msgspec.json.encode(document("", "", [manifest]))
    except Exception as error:  # whatever a manifest contains, it ends here
        return f"its schemas cannot be used: {error!r}"[:300]
    return fault


def _faults(manifest: Manifest) -> Iterator[str]:
    for info in manifest.requests:
        if info.http is not None:
            yield from (f"{info.name}: {fault}" for fault in _route_faults(info, info.http))
        for error in info.errors:
            if not 400 <= error.status <= 599:
                yield f"{info.name}: the error {error.code} has the status {error.status}: expected 400 to 599"
        for schema in (info.request, info.reply, *(error.schema for error in info.errors)):
            yield from (f"{info.name}: {fault}" for fault in _schema_faults(schema, manifest.schemas))
    for name, schema in manifest.schemas.items():
        if not name.startswith(f"{manifest.service}."):
            yield f"the schema {name} is not one of {manifest.service}"
        yield from (f"the schema {name}: {fault}" for fault in _schema_faults(schema, manifest.schemas))
    if manifest.live is not None and manifest.live.request not in {info.name for info in manifest.requests}:
        yield f"live: it has no request {manifest.live.request}"


def _route_faults(info: RequestInfo, http: HttpBinding) -> Iterator[str]:
    where = f"http='{http.method} {http.path}'"
    if (fault := route_fault(http.method, http.path)) is not None:
        yield f"{where}: {fault}"
    if http.path_fields != tuple(part[1:-1] for part in http.path.split("/") if part.startswith("{")):
        yield f"{where}: its parameters are not {', '.join(http.path_fields) or 'none'}"
    if not 200 <= http.status <= 299:
        yield f"{where}: the status is {http.status}: expected 200 to 299"
    if http.body_fields and http.method in ("GET", "DELETE"):
        yield f"{where}: {http.method} has no body"
    properties = info.request.get("properties", {})
    for name in (*http.path_fields, *http.query_fields, *http.body_fields):
        if name not in properties:
            yield f"{where}: its schema has no property {name}"


def _schema_faults(schema: Any, named: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the shape of a JSON Schema. What its keywords mean is not looked at."""
    stack = [schema]
    while stack:
        found = stack.pop()
        if isinstance(found, bool):
            continue
        if not isinstance(found, dict):
            yield f"expected a schema, got {found!r:.60}"
            return
        keywords = cast(dict[str, Any], found)
        reference = keywords.get("$ref")
        if reference is not None and str(reference).removeprefix(_REFERENCE) not in named:
            yield f"$ref: nothing is called {reference!r:.60}"
        required = keywords.get("required", [])
        if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in cast(Sequence[Any], required)):
            yield f"required: expected names, got {required!r:.60}"
        stack += [keywords[name] for name in _ONE if name in keywords]
        for name in _LISTS:
            variants = keywords.get(name, [])
            if not isinstance(variants, list | tuple):
                yield f"{name}: expected a list, got {variants!r:.60}"
                return
            stack += cast(Sequence[Any], variants)
        for name in _MAPS:
            members = keywords.get(name, {})
            if not isinstance(members, dict):
                yield f"{name}: expected an object, got {members!r:.60}"
                return
            stack += cast(dict[str, Any], members).values()
