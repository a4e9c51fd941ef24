"""What the gateway knows about services: the manifests of live instances, and those of versions that may come back.

While a service is deployed, instances of two versions are live, and its routes are those of both. A version is distinguished from
another by everything in the manifest but the identity of the instance.

A manifest comes from another process, of another version or another author. One that does not hold together is refused when
it arrives, so that it cannot break the routes or the OpenAPI document of the others.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, cast

import msgspec

from gateway.errors import ErrorRenderer
from gateway.openapi import document
from gateway.route_owners import RouteOwners
from gateway.routing import Routes
from gateway.settings import GatewaySettings, IdentitySettings
from runtime.contract.codec import to_canonical_json
from runtime.contract.rest import REST, HttpBinding, route_fault
from runtime.metrics import Metrics
from runtime.network import Address, LiveInfo, Manifest, RequestInfo
from runtime.network.registry import Registry

_log = logging.getLogger("callboard.gateway")

_MOST_GONE = 8
"""The versions of one service without an instance that are kept at most."""
_REFERENCE = "#/components/schemas/"
_ONE = ("items", "additionalProperties", "contains", "not", "propertyNames")
"""The keywords of a JSON Schema whose value is a schema (JSON Schema 2020-12, section 10)."""
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "dependentSchemas")


class _Version:
    """A version of a service that has, or had, live instances.

    Attributes:
        manifest: the manifest of one of its instances, without routes that belong to other services.
        gone_at: when its last instance left, on the clock's `monotonic` scale; None while it is live.
    """

    __slots__ = ("gone_at", "manifest")

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.gone_at: float | None = None


class Manifests:
    """The manifests that the gateway serves.

    Args:
        settings: `expects` names the services whose routes have to be known before the gateway is ready. `forget_after` is how long
            the routes of a version without an instance are kept.
        owners: admits the routes that belong to the service that announces them.
        monotonic: returns the time.

    Attributes:
        live: by service, a manifest of each version that has a live instance, the newest version first.
        absent: the manifests of versions that have none. Their routes stay for a while, because they may come back.
    """

    def __init__(
        self, registry: Registry, metrics: Metrics, settings: GatewaySettings, owners: RouteOwners, monotonic: Callable[[], float]
    ) -> None:
        self.live: dict[str, tuple[Manifest, ...]] = {}
        self.absent: list[Manifest] = []
        self._registry = registry
        self._metrics = metrics
        self._expects = settings.expects
        self._forget_after = settings.forget_after
        self._owners = owners
        self._monotonic = monotonic
        self._started = monotonic()
        self._known: dict[str, dict[bytes, _Version]] = {}
        self._seen: dict[str, float] = {}
        """By service, when it was seen last. One that was never seen counts as seen at the start."""
        self._forgotten: frozenset[str] = frozenset()
        self._has_seen_routes = False
        self._checked: dict[Address, tuple[Manifest, bytes | None]] = {}
        registry.watch(self.update)
        self.update()

    def update(self) -> None:
        """Take over the manifests of the live instances."""
        checked: dict[Address, tuple[Manifest, bytes | None]] = {}
        for member in self._registry:
            manifest = member.manifest
            known = self._checked.get(member.address)
            checked[member.address] = known if known is not None and known[0] is manifest else (manifest, self._check(manifest))
        self._checked = checked
        versions = {(manifest.service, digest): manifest for manifest, digest in checked.values() if digest is not None}
        admitted = dict(zip(versions, self._owners.admit(versions.values()), strict=True))
        now = self._monotonic()
        for (service, digest), manifest in admitted.items():
            self._known.setdefault(service, {})[digest] = _Version(manifest)
            self._seen[service] = now
            self._has_seen_routes = self._has_seen_routes or any(info.http is not None for info in manifest.requests)
        for service, known_versions in self._known.items():
            for digest, version in known_versions.items():
                if (service, digest) not in admitted and version.gone_at is None:
                    version.gone_at = self._seen[service] = now
            gone = [digest for digest, version in known_versions.items() if version.gone_at is not None]
            for digest in gone[:-_MOST_GONE]:
                del known_versions[digest]
        self._arrange()

    def forget(self) -> bool:
        """Forget what has had no instance for longer than `forget_after`. Return whether there was anything.

        A service that the gateway expects, or that `owners` names, is never given up. Routes that it no longer has are given up.
        """
        before, old = self._forgotten, self._monotonic() - self._forget_after
        dropped = False
        for service, versions in self._known.items():
            if service in self.live or not self._is_expected(service):
                outdated = [
                    digest for digest, version in versions.items() if version.gone_at is not None and version.gone_at <= old
                ]
                dropped = dropped or bool(outdated)
                for digest in outdated:
                    del versions[digest]
        self._forgotten = frozenset(
            service
            for service in {*self._owners.services(), *self._known}
            if service not in self.live and not self._is_expected(service) and self._seen.get(service, self._started) <= old
        )
        if dropped:
            self._arrange()
        return dropped or self._forgotten != before

    def missing(self) -> list[str]:
        """Return the services that the gateway waits for before it is ready. If it expects none, it waits for any with routes."""
        if self._expects:
            return [service for service in self._expects if service not in self._seen]
        return [] if self._has_seen_routes else ["any service"]

    def routes(self) -> Routes:
        """Return the routes of all known services. Those of a service that is away stay its own, also if they are not known."""
        live = [manifest for versions in self.live.values() for manifest in versions]
        return Routes(live, self.absent, self._owners.routes(), self._owners.prefixes, self._forgotten)

    def document(
        self, title: str, version: str, identity: IdentitySettings | None = None, errors: ErrorRenderer | None = None
    ) -> dict[str, Any]:
        """Return the OpenAPI document of the known services. Live versions take precedence."""
        live = [manifest for _, versions in sorted(self.live.items()) for manifest in versions]
        return document(title, version, [*live, *self.absent], identity, errors)

    def feeds(self) -> dict[str, LiveInfo]:
        """Return what each service that is live or expected marks as `live`, by service."""
        known = [manifest for manifest in self.absent if manifest.service not in self.live and manifest.service in self._expects]
        known += [manifest for versions in self.live.values() for manifest in versions]
        return {manifest.service: manifest.live for manifest in reversed(known) if manifest.live is not None}

    def _is_expected(self, service: str) -> bool:
        return service in self._expects or service in self._owners.configured

    def _arrange(self) -> None:
        """Put the known versions in order, so that it does not matter which of two instances joined first."""
        live: dict[str, tuple[Manifest, ...]] = {}
        self.absent = []
        for service, versions in self._known.items():
            newest_first = [version for _, version in sorted(versions.items(), key=_age, reverse=True)]
            if found := tuple(version.manifest for version in newest_first if version.gone_at is None):
                live[service] = found
            gone = [version for version in newest_first if version.gone_at is not None]
            self.absent += [version.manifest for version in gone]
        self.live = live

    def _check(self, manifest: Manifest) -> bytes | None:
        """Return the digest of a version, or None if its manifest is refused."""
        fault = manifest_fault(manifest)
        if fault is None:
            return sha256(to_canonical_json(msgspec.structs.replace(manifest, node="", instance=""))).digest()
        self._metrics.count("manifests_refused_total", service=manifest.service)
        _log.error(
            "the manifest of %s on %s is refused, and its routes are not served: %s", manifest.service, manifest.node, fault
        )
        return None


def _age(known: tuple[bytes, _Version]) -> tuple[list[tuple[int, str]], int, bytes]:
    """Return the key by which newer versions come later: by version, then by the number of requests."""
    digest, version = known
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", version.manifest.version)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], len(version.manifest.requests), digest


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
    if http.path_fields != tuple(part[1:-1].removesuffix(REST[:-1]) for part in http.path.split("/") if part.startswith("{")):
        yield f"{where}: its parameters are not {', '.join(http.path_fields) or 'none'}"
    if not 200 <= http.status <= 299:
        yield f"{where}: the status is {http.status}: expected 200 to 299"
    if http.body_fields and http.method in ("GET", "DELETE"):
        yield f"{where}: {http.method} has no body"
    properties = info.request.get("properties", {})
    inputs = (found.field for found in http.inputs)
    for name in (*http.path_fields, *http.query_fields, *http.body_fields, *http.form_fields, *inputs):
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
