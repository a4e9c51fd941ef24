"""What operators and admins may see: who is there, and how it does."""

from collections.abc import Mapping
from typing import Any

from gateway.client import bearer
from runtime import Forbidden, Unauthenticated
from runtime.identity import Identity
from runtime.node.proxy import Proxy

_ROLES = ("operator", "admin")


async def operator(proxy: Proxy, headers: Mapping[bytes, bytes]) -> tuple[Identity, str]:
    """The operator (or admin) who asks, with the access token.

    Raises:
        Unauthenticated, Forbidden: nobody, or somebody else.
    """
    token = bearer(dict(headers))
    if token is None:
        raise Unauthenticated("an access token is needed, as `Authorization: Bearer …`")
    identity = await proxy.identify(token)
    if identity.role not in _ROLES:
        raise Forbidden
    return identity, token


def instances(proxy: Proxy) -> list[dict[str, Any]]:
    """Every instance that the gateway sees: where it is, how it does, how much it has to do, and of which version."""
    now = proxy.clock.monotonic()
    found: list[dict[str, Any]] = []
    for member in proxy.registry:
        manifest = member.manifest
        found.append(
            {
                "service": manifest.service,
                "node": manifest.node,
                "instance": manifest.instance,
                "version": manifest.version,
                "state": member.state(now),
                "load": round(member.load(now)),
                "in_flight": member.in_flight,
                "requests": len(manifest.requests),
                "events": len(manifest.events),
                "calls": list(manifest.calls),
            }
        )
    return sorted(found, key=lambda row: (row["service"], row["node"]))
