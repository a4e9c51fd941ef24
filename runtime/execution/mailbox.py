"""The mailbox: how many messages an instance handles at once, how many wait, and which are refused."""

import asyncio
from collections import deque
from collections.abc import Hashable

from runtime.contract.errors import Draining, Overloaded

_Waiter = asyncio.Future[None]


class Mailbox:
    """Admits messages to an instance.

    At most `concurrency` messages run at once, and at most one for each key, in the order of arrival. At most `capacity`
    more wait; a further one is refused immediately. An idle key takes no memory.
    """

    __slots__ = ("_capacity", "_idle", "_keys", "_ready", "_waiting", "concurrency", "limit", "must_wake", "running", "service")

    def __init__(self, service: str, concurrency: int, capacity: int) -> None:
        self.service: str = service
        self.concurrency: int = concurrency
        self.limit: int = concurrency
        """How many messages may run now: `concurrency`, or its negative while the mailbox drains."""
        self.running: int = 0
        self.must_wake: bool = False
        """Whether `wake` has to be called when `running` falls, because a message or `drain` waits for it."""
        self._capacity = capacity
        self._waiting = 0
        self._ready: deque[_Waiter] = deque()
        self._keys: dict[Hashable, deque[_Waiter] | None] = {}
        self._idle: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = "OPEN" if self.limit > 0 else "DRAINING"
        return f"<Mailbox {self.service} [{state}] running={self.running} waiting={self._waiting}>"

    @property
    def waiting(self) -> int:
        """The number of messages that wait."""
        return self._waiting

    @property
    def load(self) -> int:
        """The number of messages that run or wait."""
        return self.running + self._waiting

    @property
    def full(self) -> bool:
        """Whether a message that arrives now would be refused."""
        return self.running >= self.limit and self._waiting >= self._capacity

    def must_wait(self, key: Hashable = None) -> bool:
        """Return whether a message that arrives now would have to wait."""
        return self.running >= self.limit or (key is not None and key in self._keys)

    async def enter(self, key: Hashable = None) -> None:
        """Wait for a slot.

        A message without a key may take a slot itself, by raising `running`, if that is below `limit`.

        Raises:
            Overloaded: if too many messages wait already.
            Draining: if the instance is stopping.
        """
        if self.limit < 0:
            raise Draining(self.service)
        held = key is not None and key in self._keys
        if not held and self._has_room():
            self.running += 1
            if key is not None:
                self._keys[key] = None
            return
        if self._waiting >= self._capacity:
            raise Overloaded(self.service)
        if key is not None and not held:
            self._keys[key] = None
        self._waiting += 1
        try:
            if held:
                await self._wait_for_key(key)
            await self._wait_for_room(key)
        finally:
            self._waiting -= 1
            self.wake()

    def _has_room(self) -> bool:
        return self.running < abs(self.limit) and not self._ready

    async def _wait_for_key(self, key: Hashable) -> None:
        queue = self._keys[key]
        if queue is None:
            queue = self._keys[key] = deque()
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # it got the key and was cancelled in the same turn of the event loop
                self._release(key)
            else:
                _withdraw(waiter, queue)
            raise

    async def _wait_for_room(self, key: Hashable) -> None:
        if self._has_room():
            self.running += 1
            return
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._ready.append(waiter)
        self.must_wake = True
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.running -= 1
            else:
                _withdraw(waiter, self._ready)
            if key is not None:
                self._release(key)
            raise

    def leave(self, key: Hashable = None) -> None:
        """Give up a slot, and wake the next message."""
        self.running -= 1
        if self.must_wake:
            self.wake()
        if key is not None:
            self._release(key)

    def wake(self) -> None:
        """Admit waiting messages, as far as there are free slots."""
        while self._ready and self.running < abs(self.limit):
            waiter = self._ready.popleft()
            if not waiter.done():
                self.running += 1
                waiter.set_result(None)
        if self._idle is not None and not self.running and not self._waiting:
            self._idle.set()
        self.must_wake = bool(self._ready) or self._idle is not None

    async def drain(self) -> None:
        """Refuse new messages from now on, and wait until those that run or wait have finished."""
        self.limit = -self.concurrency
        self._idle = asyncio.Event()
        self.wake()
        await self._idle.wait()

    def _release(self, key: Hashable) -> None:
        queue = self._keys[key]
        while queue:
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        del self._keys[key]


def _withdraw(waiter: _Waiter, queue: "deque[_Waiter]") -> None:
    """Remove a cancelled waiter from a queue, unless it was skipped there already."""
    try:
        queue.remove(waiter)
    except ValueError:
        return
