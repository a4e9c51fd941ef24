"""Expectations of tests: waiting for a condition, and errors that say what did not hold."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from runtime.contract.errors import CallboardError

WAIT = 10.0
"""The seconds after which a condition that is awaited has failed."""


class ConformanceError(CallboardError):
    """A transport does not do what it must do. The message names the case."""


async def eventually(condition: Callable[[], Any], what: str, seconds: float = WAIT) -> None:
    """Wait until a condition holds.

    Args:
        condition: returns a value, or an awaitable of one, that is true once the condition holds.
        what: a description of the condition for the error.
        seconds: the longest time to wait.

    Raises:
        ConformanceError: if it did not hold in time.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise ConformanceError(f"did not come true: {what}") from None


def expect(condition: bool, what: str) -> None:
    """Raise `ConformanceError` unless the condition holds."""
    if not condition:
        raise ConformanceError(f"does not hold: {what}")
