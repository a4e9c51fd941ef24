"""Requests between two instances in one process."""

from asyncio import current_task
from collections.abc import Coroutine
from typing import Any

from runtime.contract.codec import too_large
from runtime.contract.errors import Invalid, KnownErrors, Violation
from runtime.contract.messages import Request
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.service.context import Context
from runtime.service.host import LocalCall

_MEASURED, _MEASURED_EVERY = 1_000, 16
"""How many requests of a kind are all measured, and how many each measured one stands for after them: a request that only takes a
microsecond would take a fifth longer."""


def local_call(endpoint: RequestEndpoint, known: KnownErrors) -> LocalCall:
    """Return the way of one instance to a handler of another in this process.

    Args:
        endpoint: the handler.
        known: returns the error classes that the caller imports.
    """
    if endpoint.is_plain:
        return _plain_call(endpoint, known)

    def call(parent: Context, message: Request[Any]) -> Coroutine[Any, Any, Any]:
        return request_locally(endpoint, known, parent, message, None, None)

    return call


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
        return endpoint.enter_nested(ctx, message, None, endpoint.copy_reply)
    text = codec.encode(message)
    if len(text) > endpoint.transport.capabilities.max_body:
        raise _too_large(endpoint, text)
    return endpoint.enter_nested(ctx, text, codec.decode, endpoint.copy_reply)


def _plain_call(endpoint: RequestEndpoint, known: KnownErrors) -> LocalCall:
    """Return `request_locally` for a handler that runs as it is: without authorization, key, and transaction.

    It does what `Endpoint.enter` does, in the same order, without the steps that such a handler does not need. The user of a token that came to
    this process has been verified for the caller, unless that is a client.
    """
    host, mailbox, handler, reply_class = endpoint.host, endpoint.mailbox, endpoint.call, endpoint.reply_class
    encode, decode = (None, None) if endpoint.codec is None else (endpoint.codec.encode, endpoint.codec.decode)
    copy_reply, deadlines, transport = endpoint.copy_reply, endpoint.deadlines, endpoint.transport
    measured, stopwatch = endpoint.measured, endpoint.stopwatch
    every, until_measured = 1, 1
    assert measured is not None

    def note(seconds: float) -> None:
        nonlocal every
        measured.observe(seconds, every)
        if every == 1 and measured.count >= _MEASURED:
            every = _MEASURED_EVERY

    async def call(parent: Context, message: Request[Any]) -> Any:
        nonlocal until_measured
        text = b""
        if encode is not None:
            text = encode(message)
            if len(text) > transport.capabilities.max_body:
                raise _too_large(endpoint, text)
        identity, envelope = parent.identity, parent.envelope
        if mailbox.running >= mailbox.limit or (identity is None and envelope is not None and envelope.token is not None):
            return await request_locally(endpoint, known, parent, message, None, None)
        ctx = Context(host, parent, known, identity)
        enforced = None if parent.enforced else deadlines
        if enforced is not None:
            task = current_task(enforced.loop) if enforced.sweeping and parent.fixed_deadline is None else None
            if task is None or task.cancelling():
                enforced.start(ctx)
            else:
                enforced.unarmed[ctx] = task
        began = 0.0
        until_measured -= 1
        if not until_measured:
            until_measured = every
            began = stopwatch()
        mailbox.running += 1
        try:
            try:
                if decode is not None:
                    message = decode(text)
                reply = await handler(message, ctx)
            finally:
                mailbox.running -= 1
                if mailbox.must_wake:
                    mailbox.wake()
            if copy_reply is not None:
                reply = copy_reply(reply)
            elif reply.__class__ is not reply_class:
                endpoint.check_class(reply)
        except BaseException as error:
            await endpoint.fail(error, message, ctx, enforced, began or stopwatch())
        if began:
            note(stopwatch() - began)
        if enforced is not None:
            try:
                del enforced.unarmed[ctx]
            except KeyError:
                enforced.stop(ctx)
        return reply

    return call


def _too_large(endpoint: RequestEndpoint, text: bytes) -> Invalid:
    return Invalid((Violation("", too_large(endpoint.name, len(text), endpoint.transport.capabilities.max_body)),))
