"""Access to the console for operators and admins, and its list of instances."""

from collections.abc import Mapping
from typing import Any

from gateway.client import bearer_token, require_token
from runtime import Forbidden
from runtime.issuers import Identity
from runtime.node.proxy import Proxy

_ROLES = frozenset({"operator", "admin"})


async def require_operator(proxy: Proxy, headers: Mapping[bytes, bytes]) -> tuple[Identity, str]:
    """Return the identity of the operator or admin who sent a request, and the access token.

    Raises:
        Unauthenticated: if the request has no valid access token.
        Forbidden: if the user is neither an operator nor an admin.
    """
    token = require_token(bearer_token(dict(headers)))
    identity = await proxy.identify(token)
    if _ROLES.isdisjoint(identity.roles):
        raise Forbidden
    return identity, token


def instances(proxy: Proxy) -> list[dict[str, Any]]:
    """Return every instance that the gateway sees, with its node, version, state, and load, ordered by service and node."""
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
