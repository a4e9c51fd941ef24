"""The owner of each REST route, so that no other service can announce it and receive its requests, passwords included."""

import fcntl
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from runtime import StartError
from runtime.network import Manifest
from runtime.telemetry import Metrics, logger

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

    Raises:
        StartError: if the file cannot be read.
    """

    def __init__(self, configured: Sequence[str], file: Path | None, metrics: Metrics) -> None:
        self._configured = {_template(path): service for path, _, service in (text.rpartition("=") for text in configured)}
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

    def _admit(self, manifest: Manifest, refused: set[tuple[str, str]]) -> Manifest:
        requests, own = list(manifest.requests), True
        for index, info in enumerate(requests):
            if info.http is None:
                continue
            route = " ".join(info.http.shape)
            owner = (
                self._configured_owner(route) or self._owners.get(route) or self._owner_of_what_it_hides(route, manifest.service)
            )
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

    def _configured_owner(self, route: str) -> str | None:
        if route in self._configured:
            return self._configured[route]
        segments = route.partition(" ")[2].split("/")
        prefixes = ("/".join(segments[:end]) or "/" for end in range(len(segments), 0, -1))
        return next((self._configured[prefix] for prefix in prefixes if prefix in self._configured), None)

    def _owner_of_what_it_hides(self, route: str, service: str) -> str | None:
        """Return the other service of which a new route would take requests, because a literal segment precedes a parameter."""
        return next((owner for known, owner in self._owners.items() if owner != service and _hides(route, known)), None)

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
                    if route not in stored or self._configured_owner(route) is not None:
                        stored[route] = owner
                new = self._file.with_suffix(".new")
                new.touch(mode=0o600)
                new.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(stored.items()))), indent=2) + b"\n")
                new.replace(self._file)
        except OSError as error:
            if any(self._configured_owner(route) is None for route in changes):
                _log.warning(
                    "%s: the owners of routes are not stored, and a restart forgets them: %s", self._file, error.strerror
                )
            return
        self._owners = stored


def _hides(route: str, known: str) -> bool:
    """Return whether a route would receive requests of a known one."""
    (method, *segments), (known_method, *known_segments) = route.replace(" ", "/").split("/"), known.replace(" ", "/").split("/")
    if method != known_method or len(segments) != len(known_segments):
        return False
    pairs = [(new, old) for new, old in zip(segments, known_segments, strict=True) if new != old]
    return all("{}" in pair for pair in pairs) and (not pairs or pairs[0][1] == "{}")


def _template(route: str) -> str:
    """Return a configured route or prefix without the names of its parameters."""
    return "/".join("{}" if segment.startswith("{") else segment for segment in route.split("/"))


def _read(file: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise StartError(
            f"{file}: the owners of routes cannot be read ({error}): restore the file, or delete it, and the first services to announce routes own them"
        ) from None
