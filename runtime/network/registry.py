"""The registry: the live instances as one node sees them, and the choice of the one that gets a request."""

import asyncio
import math
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Literal, NamedTuple

from runtime.clock import Clock, Random
from runtime.network.envelope import Address
from runtime.network.manifest import Manifest, RequestInfo, announced
from runtime.tasks import Backoff

_TOLERATED = 5
"""The number of failures in a row after which an instance is ejected."""
_EJECTION = Backoff(1.0, 30.0)
_COMES_BACK = 15.0
"""The seconds for which requests wait for a service whose last instance is gone: time to restart a container."""

_NEVER = float("-inf")


class Member:
    """A live instance, with the requests that this node has in flight there and its recent failures.

    Attributes:
        requests: its requests by their full names, and by their routes, such as `GET /rides/{}`.
    """

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
        self.manifest: Manifest = manifest
        self.address: Address = manifest.address
        self.requests: dict[str, RequestInfo] = announced(manifest)
        self.in_flight: int = 0
        self.suspected: bool = False
        """Whether it has been silent. Others are preferred."""
        self.ejected_until: float = 0.0
        """The time until which it is ejected for its failures, on the clock's `monotonic` scale. Others are preferred."""
        self._failures = 0
        self._ejected_since = float("-inf")
        self._others = 0
        self._reported_at = 0.0

    def __repr__(self) -> str:
        return f"<Member {self.address} [{'SUSPECTED' if self.suspected else 'THERE'}] in_flight={self.in_flight}>"

    def state(self, now: float) -> Literal["there", "suspected", "ejected"]:
        """Return its state. A `suspected` or `ejected` instance gets requests only if there is no other."""
        return "suspected" if self.suspected else "ejected" if self.ejected_until > now else "there"

    def report(self, load: int, now: float) -> None:
        """Record the load that it has reported: the messages of this node and of others."""
        self._others = load - self.in_flight
        self._reported_at = now

    def load(self, now: float) -> float:
        """Return its load: the requests in flight from here, and what others had at its last report, halved every second."""
        if self._others <= 0:
            return self.in_flight
        return self.in_flight + self._others * math.exp2(min(self._reported_at - now, 0.0))

    def succeeded(self) -> None:
        """Record a proper answer."""
        self._failures = 0
        self.ejected_until = 0.0

    def failed(self, begun: float, now: float, random: Random) -> bool:
        """Record a failure. Return True if the instance is ejected for it; each ejection is longer than the one before.

        Args:
            begun: when the request was sent. Requests that were in flight at the last ejection do not count again.
        """
        if begun < self._ejected_since:
            return False
        self._failures += 1
        if self._failures < _TOLERATED:
            return False
        self._ejected_since = now
        self.ejected_until = now + _EJECTION.delay(self._failures - _TOLERATED + 1, random)
        return True

    def may_repeat(self, request: str | None) -> bool:
        """Return whether a request that may have run elsewhere can be made here again: it is idempotent or `once` here, too."""
        info = None if request is None else self.requests.get(request)
        return info is not None and (info.idempotent or info.once)

    def weight(self, key: str) -> bytes:
        """Return the weight of this instance for a key: the same on every node (rendezvous hashing)."""
        return blake2b(f"{self.manifest.node}\0{key}".encode(), digest_size=8).digest()


class _Gone(NamedTuple):
    """When the last instance left that could be asked for something, and how: `safe` requests expect to be retried."""

    at: float
    lost: bool
    safe: bool = False

    @property
    def awaited_until(self) -> float:
        """The time until which a request waits for an instance.

        If the last one was lost, every request waits. If it has withdrawn, which may be for good, only those do whose callers
        expect retries: idempotent and `once` requests.
        """
        return self.at + _COMES_BACK if self.lost or self.safe else _NEVER


class Registry:
    """The live instances as one node sees them.

    Args:
        wanted: called with the name of a service whose members are needed.
    """

    def __init__(self, clock: Clock, random: Random, wanted: Callable[[str], None]) -> None:
        self._clock = clock
        self._random = random
        self._wanted = wanted
        self._members: dict[str, dict[Address, Member]] = {}
        self._gone: dict[tuple[str, str | None], _Gone] = {}
        """By service and request, and by service alone, which stands for what no instance has announced."""
        self._complete_at: dict[str | None, float] = {}
        self._closing = False
        self._watchers: list[Callable[[], None]] = []
        self._changed: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Registry {', '.join(str(member.address) for member in self)}>"

    def __iter__(self) -> Iterator[Member]:
        for members in self._members.values():
            yield from members.values()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` after every change."""
        self._watchers.append(watcher)

    def join(self, manifest: Manifest, load: int = 0) -> bool:
        """Add an instance, or update it. Return True if it is new."""
        members = self._members.setdefault(manifest.service, {})
        known = members.get(manifest.address)
        new = known is None or known.manifest.instance != manifest.instance
        if known is None or new:
            known = members[manifest.address] = Member(manifest)
        known.report(load, self._clock.monotonic())
        known.suspected = False
        if not new:
            if known.manifest is manifest or known.manifest == manifest:
                return False  # a heartbeat
            known.manifest = manifest
            known.requests = announced(manifest)
        self._notify()
        return new

    def suspect(self, address: Address) -> None:
        """Prefer other instances to one that has been silent."""
        member = self._members.get(address.service, {}).get(address)
        if member is not None:
            member.suspected = True

    def leave(self, address: Address, *, lost: bool) -> bool:
        """Remove an instance. Return True if it was a member."""
        members = self._members.get(address.service, {})
        member = members.pop(address, None)
        if member is None:
            return False
        self._note_gone(member, lost=lost)
        self._notify()
        return True

    def _note_gone(self, member: Member, *, lost: bool) -> None:
        """Note what no instance of a service can be asked for any more, now that one has left."""
        now, service = self._clock.monotonic(), member.address.service
        self._gone = {what: gone for what, gone in self._gone.items() if gone.at + _COMES_BACK > now}
        others = self._members[service].values()
        for request, info in member.requests.items():
            if not any(request in other.requests for other in others):
                self._gone[service, request] = _Gone(now, lost, info.idempotent or info.once)
        if not others:
            self._gone[service, None] = _Gone(now, lost)

    def close(self) -> None:
        """Let no request wait for a service any more, because this node is stopping."""
        self._closing = True
        self._notify()

    def will_be_complete(self, service: str | None, at: float) -> None:
        """Note when all instances of a service that is watched now will be known; of every service, for None."""
        self._complete_at.setdefault(service, at)

    async def appears(self, service: str, request: str | None, deadline: float, *, again: bool = False) -> bool:
        """Wait for an instance of a service that can be asked for a request, if there may be one in a moment.

        The last one may have left or been lost a moment ago, and restart or reconnect to the network. Or this node has only
        begun to watch the service, and has not heard of all instances yet.

        Args:
            request: the full name of the request that waits, or a route; None if every instance has it.
            deadline: when to stop waiting, on the clock's `monotonic` scale.
            again: whether the request may have run already.

        Returns:
            Whether there is one.
        """
        gone = self._gone.get((service, request)) or (None if self._members.get(service) else self._gone.get((service, None)))
        if gone is not None:
            until = gone.awaited_until
        else:
            until = min((self._complete_at[name] for name in (service, None) if name in self._complete_at), default=_NEVER)
        until = min(deadline, until)
        if until <= self._clock.monotonic():
            return False
        self._wanted(service)
        try:
            async with asyncio.timeout_at(until):
                while not self.has(service, request, again=again):
                    if self._closing or until <= self._clock.monotonic():
                        return False
                    await self.changed()
        except TimeoutError:
            return False
        return True

    def has(self, service: str, request: str | None, *, again: bool = False) -> bool:
        """Return whether an instance of a service can be asked for a request. Takes the same arguments as `pick`."""
        members = self._members.get(service, {}).values()
        return any(
            (request is None or request in member.requests) and (not again or member.may_repeat(request)) for member in members
        )

    def members(self, service: str) -> list[Member]:
        """Return the live instances of a service."""
        self._wanted(service)
        return list(self._members.get(service, {}).values())

    def pick(
        self,
        service: str,
        now: float,
        without: frozenset[Address] = frozenset(),
        key: str | None = None,
        request: str | None = None,
        *,
        again: bool = False,
    ) -> Member | None:
        """Choose an instance for a request: the less loaded of two random ones, or with a key the one that the key prefers.

        While a service is deployed, its instances differ in what they can be asked for. Suspected and ejected instances are
        chosen only if there is no other.

        Args:
            now: the time on the clock's `monotonic` scale.
            without: the addresses to leave out.
            request: the full name of the request, or a route; None if every instance has it.
            again: whether the request may have run already: only instances count where it may be repeated.

        Returns:
            The instance, or None if there is none.
        """
        members = self._members.get(service)
        if not members:
            return None
        if len(members) == 1:
            (only,) = members.values()
            has = request is None or request in only.requests
            return only if has and only.address not in without and not (again and not only.may_repeat(request)) else None
        able = [
            member
            for address, member in members.items()
            if (request is None or request in member.requests) and address not in without
        ]
        if again:
            able = [member for member in able if member.may_repeat(request)]
        able = [member for member in able if not member.suspected and member.ejected_until <= now] or able
        if len(able) < 2:
            return able[0] if able else None
        if key is not None:
            return max(able, key=lambda member: member.weight(key))
        first, second = (able[index] for index in self._random.sample(len(able), 2))
        return first if first.load(now) <= second.load(now) else second

    def has_instance(self, instance: str) -> bool:
        """Return whether the instance with this id is live."""
        return any(member.manifest.instance == instance for member in self)

    async def wait_for(self, *services: str) -> None:
        """Wait until each of the services has an instance."""
        for service in services:
            self._wanted(service)
        while not all(self._members.get(service) for service in services):
            await self.changed()

    async def changed(self) -> None:
        """Wait until an instance joins or leaves, or announces something else."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        for watcher in self._watchers:
            watcher()
