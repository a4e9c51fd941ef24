"""Requests between two instances in one process."""

from typing import Any

from runtime.contract.errors import KnownErrors, ServiceError, rebuild_error
from runtime.contract.messages import Request
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.service.context import Context


async def request_locally(
    endpoint: RequestEndpoint, known: KnownErrors, parent: Context, message: Request[Any], timeout: float | None, key: str | None
) -> Any:
    """Make a request to an instance in this process. The handler runs in the caller's own task.

    Args:
        endpoint: the handler.
        known: returns the error classes that the caller imports.
        parent: the caller's context.
        timeout: the longest time to wait, in seconds, within the caller's deadline.
        key: the idempotency key, if the caller gives one.

    Raises:
        ServiceError: as `Context.request`.
    """
    ctx = Context(endpoint.host, parent)
    if key is not None:
        ctx.given_key = key
    if timeout is not None:
        ctx.fixed_deadline = min(parent.deadline, endpoint.host.clock.monotonic() + timeout)
    try:
        return await endpoint.enter(ctx, message, endpoint.copy, endpoint.copy_reply)
    except ServiceError as error:
        raise visible_error(error, known, copy=not endpoint.zero_copy) from None


def visible_error(error: ServiceError, known: KnownErrors, *, copy: bool) -> ServiceError:
    """Return a callee's error as the caller sees it: a `RemoteError` if it does not import the class, as across a network."""
    if not copy and (error.contract == "callboard" or known(error.contract, error.code) is type(error)):
        return error
    return rebuild_error(error.data(), known)
