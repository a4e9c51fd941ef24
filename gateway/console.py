"""The console: what operators and admins see of a running system, and what they repair."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.client import bearer_token, require_token
from gateway.problems import Problem
from runtime import Forbidden
from runtime.durable.console import console
from runtime.issuers import Identity
from runtime.node.proxy import Proxy

_SECONDS = 30.0
"""The seconds that a service may take to answer an operator."""
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


async def ask(proxy: Proxy, operator: Identity, service: str, name: str, body: bytes) -> bytes:
    """Make a request of the console to a service. Return the JSON text of its reply.

    Args:
        name: the name of the request.
        body: its JSON text; empty for a request without fields.

    Raises:
        Problem: if there is no such request or no such service (404).
        ServiceError: if the body does not fit, and what the service answers.
    """
    spec = console.messages.get(name)
    if spec is None or spec.kind != "request" or spec.full_name == "console.Drain":
        raise Problem(404, "not-found", f"The console has no request {name!r:.100}.")
    if not proxy.registry.members(service):
        raise Problem(404, "no-instance", f"No instance of a service {service!r:.100} is running.")
    message = spec.codec.decode(body or b"{}")
    proxy.log.info("%s asks %s for %s", operator.subject, service, spec.full_name)
    return spec.reply_codec.encode(await proxy.ask_service(service, message, _SECONDS))


async def keys(proxy: Proxy, operator: Identity, request: str, kid: str = "") -> bytes:
    """Make a request about the keys that sign access tokens. Return the JSON text of its reply.

    Args:
        request: its full name, in the contract of Callboard's auth service.
        kid: the id of the key that it is about.

    Raises:
        Forbidden: if the user is no admin.
        ServiceError: what the service answers; `NoInstance` if it is another auth service than Callboard's.
    """
    if "admin" not in operator.roles:
        raise Forbidden
    proxy.log.warning("%s asks for %s %s", operator.subject, request, kid)
    ctx = proxy.context(proxy.new_id(), None, None, _SECONDS)
    return await proxy.ask(ctx, "auth", request, msgspec.json.encode({"kid": kid} if kid else {}))


async def drain(proxy: Proxy, operator: Identity, node: str) -> None:
    """Let a node finish its work and stop.

    Raises:
        Problem: if there is no such node (404).
        ServiceError: if it cannot be reached.
    """
    proxy.log.warning("%s drains the node %s", operator.subject, node)
    if not await proxy.drain(node, _SECONDS):
        raise Problem(404, "no-node", f"No node {node!r:.100} is running.")
