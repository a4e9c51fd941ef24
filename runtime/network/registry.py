"""The registry: the live instances as one node sees them, and which of them is asked."""

import asyncio
import math
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Literal

from runtime.clock import Clock, Random
from runtime.network.envelope import Address
from runtime.network.manifest import Manifest, RequestInfo

_PATIENCE = 5
"""After so many failures in a row an instance is set aside."""
_LONGEST_EJECTION = 30.0
_COMES_BACK = 5.0
"""For so many seconds a service whose last instance was lost is waited for."""


class Member:
    """One live instance, what this node has under way there, and how it has done."""

    __slots__ = (
        "_ejected_since",
        "_failures",
        "_others",
        "_reported_at",
        "address",
        "ejected_until",
        "in_flight",
        "manifest",
        "requests",
        "suspected",
    )

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.address = manifest.address
        self.requests: dict[str, RequestInfo] = {info.name: info for info in manifest.requests}
        self.in_flight = 0
        self.suspected = False
        """It has been silent: others are asked first."""
        self.ejected_until = 0.0
        """It has failed too often, and is not asked before that, on the clock's `monotonic` scale."""
        self._failures = 0
        self._ejected_since = float("-inf")
        self._others = 0
        self._reported_at = 0.0

    def __repr__(self) -> str:
        return f"<Member {self.address} [{'SUSPECTED' if self.suspected else 'THERE'}] in_flight={self.in_flight}>"

    def state(self, now: float) -> Literal["there", "suspected", "ejected"]:
        """Whether it is asked like any other; `suspected` and set `aside`, only when there is no other."""
        return "suspected" if self.suspected else "ejected" if self.ejected_until > now else "there"

    def report(self, load: int, now: float) -> None:
        """It has said how much it has to do, for this node and for others."""
        self._others = load - self.in_flight
        self._reported_at = now

    def load(self, now: float) -> float:
        """How much it has to do: what is under way from here, and what others had when it last said, less with every second."""
        if self._others <= 0:
            return self.in_flight
        return self.in_flight + self._others * math.exp2(min(self._reported_at - now, 0.0))

    def succeeded(self) -> None:
        """It has answered."""
        self._failures = 0
        self.ejected_until = 0.0

    def failed(self, begun: float, now: float, random: Random) -> bool:
        """It has failed to answer properly. Says whether it is set aside for that, a longer time each time.

        Args:
            begun: when it was asked: what was under way when it was set aside does not count again.
        """
        if begun < self._ejected_since:
            return False
        self._failures += 1
        if self._failures < _PATIENCE:
            return False
        self._ejected_since = now
        self.ejected_until = now + random.jitter(min(2.0 ** min(self._failures - _PATIENCE + 1, 10), _LONGEST_EJECTION))
        return True

    def weight(self, key: str) -> bytes:
        """How much a key prefers this instance: the same on every node (rendezvous hashing)."""
        return blake2b(f"{self.manifest.node}\0{key}".encode(), digest_size=8).digest()


class Registry:
    """Who is there. Watchers are told of every change.

    Args:
        wanted: is told of services that somebody here wants to know of.
    """

    def __init__(self, clock: Clock, random: Random, wanted: Callable[[str], None]) -> None:
        self._clock = clock
        self._random = random
        self._wanted = wanted
        self._members: dict[str, dict[Address, Member]] = {}
        self._lost_at: dict[str, float] = {}
        self._watchers: list[Callable[[], None]] = []
        self._changed: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Registry {', '.join(str(member.address) for member in self)}>"

    def __iter__(self) -> Iterator[Member]:
        for members in self._members.values():
            yield from members.values()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` after every change."""
        self._watchers.append(watcher)

    def join(self, manifest: Manifest, load: int = 0) -> bool:
        """Adds an instance, or replaces what is known of it. Says whether it is a new one."""
        members = self._members.setdefault(manifest.service, {})
        known = members.get(manifest.address)
        new = known is None or known.manifest.instance != manifest.instance
        if known is None or new:
            known = members[manifest.address] = Member(manifest)
        known.report(load, self._clock.monotonic())
        known.suspected = False
        if not new:
            if known.manifest is manifest or known.manifest == manifest:
                return False  # it says again that it is there
            known.manifest = manifest
            known.requests = {info.name: info for info in manifest.requests}
        self._tell()
        return new

    def suspect(self, address: Address) -> None:
        """An instance is silent: others are asked first."""
        member = self._members.get(address.service, {}).get(address)
        if member is not None:
            member.suspected = True

    def leave(self, address: Address, *, lost: bool) -> bool:
        """Removes an instance. Says whether it was there."""
        members = self._members.get(address.service, {})
        if members.pop(address, None) is None:
            return False
        if lost and not members:
            self._lost_at[address.service] = self._clock.monotonic()
        self._tell()
        return True

    async def comes_back(self, service: str, deadline: float) -> bool:
        """Waits for a service whose last instance was lost a moment ago: it may be started anew, or find its network again.

        Args:
            deadline: how long to wait at most, on the clock's `monotonic` scale.
        """
        lost_at = self._lost_at.get(service)
        until = deadline if lost_at is None else min(deadline, lost_at + _COMES_BACK)
        if lost_at is None or until <= self._clock.monotonic():
            return False
        try:
            async with asyncio.timeout_at(until):
                await self.wait_for(service)
        except TimeoutError:
            return False
        return True

    def members(self, service: str) -> list[Member]:
        """The live instances of a service."""
        self._wanted(service)
        return list(self._members.get(service, {}).values())

    def pick(self, service: str, now: float, without: frozenset[Address] = frozenset(), key: str | None = None) -> Member | None:
        """An instance to ask: of two drawn by random the one with less to do; with a key, the one that the key prefers.

        Those that are suspected or set aside are asked when there is no other.
        """
        members = self._members.get(service)
        if not members:
            return None
        if len(members) == 1:
            (only,) = members.values()
            return None if only.address in without else only
        able = [
            member
            for address, member in members.items()
            if not member.suspected and member.ejected_until <= now and address not in without
        ]
        if not able:
            able = [member for address, member in members.items() if address not in without]
        if len(able) < 2:
            return able[0] if able else None
        if key is not None:
            return max(able, key=lambda member: member.weight(key))
        first, second = (able[index] for index in self._random.sample(len(able), 2))
        return first if first.load(now) <= second.load(now) else second

    def has_instance(self, instance: str) -> bool:
        """Whether the instance with this id is there."""
        return any(member.manifest.instance == instance for member in self)

    async def wait_for(self, *services: str) -> None:
        """Waits until there is an instance of each service."""
        for service in services:
            self._wanted(service)
        while not all(self._members.get(service) for service in services):
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        for watcher in self._watchers:
            watcher()
