"""The requests of the console: what operators and admins ask of a running system, and what they repair."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.client import bearer_token, require_token
from gateway.exchange import Exchange
from gateway.problems import Problem, Problems
from runtime import Forbidden, ServiceError, Struct
from runtime.durable.console import console
from runtime.issuers import Identity
from runtime.node.proxy import Proxy
from runtime.trace import trace_id

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


def described(proxy: Proxy) -> dict[str, Any]:
    """Return the requests of all services with the JSON Schemas of their messages, and the types that these refer to."""
    found: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for member in proxy.registry:
        manifest = member.manifest
        schemas |= manifest.schemas
        for info in manifest.requests:
            found[info.name] = {
                "service": manifest.service, "name": info.name, "summary": info.summary, "description": info.description,
                "allow": info.allow.shown(), "route": None if info.http is None else info.http.route,
                "request": info.request, "reply": info.reply, "takes_stream": info.http is not None and info.http.raw_kind == "stream",
            }  # fmt: skip
    return {"items": sorted(found.values(), key=lambda one: one["name"]), "schemas": schemas}


class Made(Struct):
    """A request that was made for a user.

    Attributes:
        trace: the id of its trace.
        reply: the JSON text of the reply, or of the problem document of an error. It is a text, because numbers in a browser are not exact.
    """

    trace: str
    status: int
    reply: str


async def make(proxy: Proxy, problems: Problems, exchange: Exchange, token: str, service: str, name: str, body: bytes) -> Made:
    """Make a request of a service as the user of an access token.

    Args:
        exchange: the request of the page, which shares its id and its trace.
        name: the full name of the request.
        body: its JSON text; empty for a request without fields.

    Raises:
        Problem: if there is no such service or request (404).
    """
    if not any(info.name == name for member in proxy.registry.members(service) for info in member.manifest.requests):
        raise Problem(404, "not-found", f"No running service {service!r:.100} has a request {name!r:.100}.")
    ctx = proxy.context(exchange.request_id, token, exchange.trace, _SECONDS)
    try:
        status, reply = 200, await proxy.ask(ctx, service, name, body or b"{}")
    except ServiceError as error:
        status, _, reply = problems.of_error(error, exchange.request_id)
    user = proxy.known_identity(token)
    proxy.log.info("the console asks %s for %s as %s: %d", service, name, "nobody" if user is None else user.subject, status)
    return Made(trace_id(exchange.trace), status, msgspec.json.format(reply, indent=2).decode())


async def publish(proxy: Proxy, operator: Identity, service: str, name: str, body: bytes) -> None:
    """Publish a signal as a service of the gateway's node.

    Args:
        name: the name of the signal, without that of the service.
        body: its JSON text; empty for a signal without fields.

    Raises:
        Problem: if there is no such signal (404).
        ServiceError: if the body does not fit.
    """
    if not await proxy.publish(service, name, body or b"{}"):
        raise Problem(404, "not-found", f"No service {service!r:.100} on this node has a signal {name!r:.100}.")
    proxy.log.info("%s publishes %s.%s", operator.subject, service, name)


async def drain(proxy: Proxy, operator: Identity, node: str) -> None:
    """Let a node finish its work and stop.

    Raises:
        Problem: if there is no such node (404).
        ServiceError: if it cannot be reached.
    """
    proxy.log.warning("%s drains the node %s", operator.subject, node)
    if not await proxy.drain(node, _SECONDS):
        raise Problem(404, "no-node", f"No node {node!r:.100} is running.")
