"""The owner of each REST route, so that no other service can announce it and receive its requests, passwords included."""

import fcntl
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from gateway.reservations import Template, best_prefix, hides, template
from runtime import StartError
from runtime.metrics import Metrics
from runtime.network import Manifest
from runtime.telemetry import logger

_log = logger("gateway")


class RouteOwners:
    """Admits the routes of services.

    The setting `gateway.owners` names the owner of a route or of all paths below a prefix. Any other route belongs to the service that
    announced it first, which is stored in a file. A route of another service is refused, whichever came first, and the owner is still served.

    Args:
        configured: the setting: `METHOD /path=service` for a route, `/prefix=service` for all others below a prefix. The longest prefix
            counts, and of equals the last.
        file: where the owners are stored; None to keep them in memory only.
        metrics: counts refused routes.

    Attributes:
        prefixes: the owner of each configured prefix.
        configured: the services that the setting names.

    Raises:
        StartError: if the file cannot be read.
    """

    def __init__(self, configured: Sequence[str], file: Path | None, metrics: Metrics) -> None:
        owners = [text.rpartition("=") for text in configured]
        self._routes = {template(path): service for path, _, service in owners if " " in path}
        self.prefixes = {template(path): service for path, _, service in owners if " " not in path}
        self.configured = frozenset(service for _, _, service in owners)
        self._file = file
        self._metrics = metrics
        self._owners: dict[str, str] = {} if file is None else _read(file)
        self._refused: set[tuple[str, str]] = set()

    def admit(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Return the manifests of live services without the routes that belong to other services."""
        before = dict(self._owners)
        refused: set[tuple[str, str]] = set()
        admitted = [self._admit(manifest, refused) for manifest in manifests]
        self._refused = refused
        if self._owners != before:
            self._store({route: owner for route, owner in self._owners.items() if before.get(route) != owner})
        return admitted

    def services(self) -> set[str]:
        """Return the services that own a route by the setting or by being first."""
        return {*self._owners.values(), *self.configured}

    def routes(self) -> dict[Template, str]:
        """Return the owner of each route that is configured or stored, whether or not it is announced."""
        stored = ((template(route), owner) for route, owner in self._owners.items())
        return {route: self._owner_by_settings(route, owner) or owner for route, owner in stored} | self._routes

    def _admit(self, manifest: Manifest, refused: set[tuple[str, str]]) -> Manifest:
        requests, own = list(manifest.requests), True
        for index, info in enumerate(requests):
            if info.http is None:
                continue
            route = " ".join(info.http.shape)
            owner = self._owner(route, manifest.service)
            if owner is None or owner == manifest.service:
                self._owners[route] = manifest.service
                continue
            requests[index], own = msgspec.structs.replace(info, http=None), False
            refused.add((manifest.service, route))
            if (manifest.service, route) not in self._refused:
                self._metrics.count("routes_refused_total", service=manifest.service)
                _log.error(
                    "%s on %s announces %s %s, which belongs to %s: the route is refused. To give it to %s, add '%s %s=%s' to gateway.owners",
                    manifest.service, manifest.node, *info.http.shape, owner, manifest.service, *info.http.shape, manifest.service,
                )  # fmt: skip
        return manifest if own else msgspec.structs.replace(manifest, requests=tuple(requests))

    def _owner(self, route: str, service: str) -> str | None:
        """Return the service that a route belongs to, or None if it has no owner yet. The settings count more than the file."""
        shape = template(route)
        return (
            self._owner_by_settings(shape, service)
            or self._owners.get(route)
            or _owner_of_what_it_hides(shape, service, ((template(known), owner) for known, owner in self._owners.items()))
        )

    def _owner_by_settings(self, route: Template, service: str) -> str | None:
        return self._configured_owner(route) or _owner_of_what_it_hides(route, service, self._routes.items())

    def _configured_owner(self, route: Template) -> str | None:
        if route in self._routes:
            return self._routes[route]
        prefix = best_prefix(self.prefixes, route[1:])
        return None if prefix is None else self.prefixes[prefix]

    def _store(self, changes: dict[str, str]) -> None:
        """Add new owners to the file. Gateways that share it keep what another has stored meanwhile, unless a setting differs."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._file.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                stored = _read(self._file)
                for route, owner in changes.items():
                    if route not in stored or self._configured_owner(template(route)) is not None:
                        stored[route] = owner
                new = self._file.with_suffix(".new")
                new.touch(mode=0o600)
                new.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(stored.items()))), indent=2) + b"\n")
                new.replace(self._file)
        except OSError as error:
            if any(self._configured_owner(template(route)) is None for route in changes):
                _log.warning(
                    "%s: the owners of routes are not stored, and a restart forgets them: %s", self._file, error.strerror
                )
            return
        self._owners = stored


def _owner_of_what_it_hides(route: Template, service: str, known: Iterable[tuple[Template, str]]) -> str | None:
    """Return the other service of which a route would take requests, because a literal segment precedes a parameter."""
    return next((owner for other, owner in known if owner != service and hides(route, other)), None)


def _read(file: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise StartError(
            f"{file}: the owners of routes cannot be read ({error}): restore the file, or delete it, and the first services to announce routes own them"
        ) from None
