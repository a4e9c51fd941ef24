"""Shares: what one client address may have under way, while the rest of its requests wait for their turn."""

import asyncio
from collections import deque

from gateway.problems import Problem


class Shares:
    """Gives each address a share of something, so that one client cannot have all of it.

    What an address begins beyond its share waits in order, which costs nobody else anything.

    Args:
        most: how much one address may have under way.
        waiting: how much more of one address may wait.
        seconds: how long it may wait.
    """

    def __init__(self, most: int, waiting: int, seconds: float) -> None:
        self._most = most
        self._waiting = waiting
        self._seconds = seconds
        self._under_way: dict[str, int] = {}
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    def check_room(self, address: str) -> None:
        """Raise `Problem` (429) if the address has its share, and as much waiting as it may."""
        if self._under_way.get(address, 0) >= self._most and len(self._queues.get(address, ())) >= self._waiting:
            raise too_many(1)

    def begin_now(self, address: str) -> bool:
        """Take a place in the share of an address if there is one. Return whether there was."""
        under_way = self._under_way.get(address, 0)
        if under_way >= self._most:
            return False
        self._under_way[address] = under_way + 1
        return True

    async def begin(self, address: str) -> None:
        """Take a place in the share of an address, as soon as there is one. The caller must call `end` afterwards.

        Raises:
            Problem: if too much of the address waits already, or it has waited for too long (429).
        """
        if self.begin_now(address):
            return
        self.check_room(address)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(address, deque()).append(turn)
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.end(address)  # its turn came just before
            else:
                self._leave(address, turn)
            if isinstance(error, TimeoutError):
                raise too_many(1) from None
            raise

    def _leave(self, address: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(address, deque())
        if turn in queue:  # unless `end` has skipped it
            queue.remove(turn)
            if not queue:
                del self._queues[address]

    def end(self, address: str) -> None:
        """Give a place back, to what has waited longest."""
        queue = self._queues.get(address) if self._queues else None
        while queue:
            turn = queue.popleft()
            if not queue:
                del self._queues[address]
            if not turn.done():
                turn.set_result(None)
                return
        under_way = self._under_way[address] - 1
        if under_way:
            self._under_way[address] = under_way
        else:
            del self._under_way[address]


def too_many(seconds: int) -> Problem:
    """Return the problem of an address that has to wait so many seconds."""
    retry_after = (b"retry-after", str(seconds).encode())
    return Problem(429, "too-many-requests", f"Too many requests: wait {seconds} s.", [retry_after])
