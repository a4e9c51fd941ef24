"""Two ways with tasks that asyncio leaves out: finishing what must finish, and going on with a started coroutine."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Awaits `work` to its end whatever is cancelled meanwhile; a cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        import anyio

        with anyio.CancelScope(shield=True):  # anyio would cancel again at every turn of the loop
            while not task.done():
                try:
                    await asyncio.wait((task,))
                except asyncio.CancelledError:
                    continue
        if not task.cancelled():
            task.exception()  # looked at: the cancellation takes precedence
        raise


class Started(Awaitable[T]):
    """Goes on with a coroutine that was started by `send(None)` in this task and waits for something."""

    __slots__ = ("_waits_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        work = self._work
        step: Callable[[Any], Any]
        argument: Any
        try:
            sent = yield self._waits_for
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            step = work.throw
            argument = error
        else:
            step = work.send
            argument = sent
        while True:
            try:
                waits_for = step(argument)
            except StopIteration as done:
                result: T = done.value
                return result
            try:
                argument = yield waits_for
                step = work.send
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                step, argument = work.throw, error
