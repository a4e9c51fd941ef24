"""Manifests that consist of routes, and who gets a request."""

from gateway.routing import Routes
from runtime.contract.access import Allow
from runtime.contract.rest import HttpBinding
from runtime.network import Manifest, RequestInfo


def manifest(service: str, *routes: str) -> Manifest:
    bindings = [HttpBinding(method, path, 200) for method, _, path in (route.partition(" ") for route in routes)]
    requests = [RequestInfo(f"{service}.R{number}", Allow(anyone=True), http) for number, http in enumerate(bindings)]
    return Manifest(service, f"node of {service}", "1", requests=tuple(requests))


def who(routes: Routes, method: str, path: str) -> str | None:
    """Return the service that gets a request, `503` and the service that is waited for, or None if there is no route."""
    found, awaited = routes.find(method, path.encode()), routes.awaited(method, path.encode())
    if found is not None:
        return found[0].service
    return None if awaited is None else f"503 {awaited}"
