"""Requests between two instances in one process."""

from collections.abc import Coroutine
from typing import Any

from runtime.contract.codec import too_large
from runtime.contract.errors import Invalid, KnownErrors, Violation
from runtime.contract.messages import Request
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.service.context import Context


def request_locally(
    endpoint: RequestEndpoint, known: KnownErrors, parent: Context, message: Request[Any], timeout: float | None, key: str | None
) -> Coroutine[Any, Any, Any]:
    """Make a request to an instance in this process. The handler runs in the caller's own task.

    Args:
        endpoint: the handler.
        known: returns the error classes that the caller imports.
        parent: the caller's context.
        timeout: the longest time to wait, in seconds, within the caller's deadline.
        key: the idempotency key, if the caller gives one.

    Raises:
        ServiceError: as `Context.request`.
        UsageError: if JSON text cannot carry the message.
        Invalid: if it is larger than a network would carry.
    """
    ctx = Context(endpoint.host, parent, known)
    if key is not None:
        ctx.given_key = key
    if timeout is not None:
        ctx.fixed_deadline = min(parent.deadline, endpoint.host.clock.monotonic() + timeout)
    codec = endpoint.codec
    if codec is None:
        return endpoint.enter(ctx, message, None, endpoint.copy_reply)
    text = codec.encode(message)
    if len(text) > endpoint.transport.capabilities.max_body:
        raise Invalid((Violation("", too_large(endpoint.name, len(text), endpoint.transport.capabilities.max_body)),))
    return endpoint.enter(ctx, text, codec.decode, endpoint.copy_reply)
