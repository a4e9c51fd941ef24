"""The registry: the live instances as one node sees them."""

import asyncio
from collections.abc import Callable, Iterator

from runtime.clock import Chance
from runtime.envelope import Address
from runtime.manifest import Manifest, RequestInfo


class Member:
    """One live instance, and what this node has under way there."""

    __slots__ = ("in_flight", "manifest", "requests")

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.in_flight = 0
        self.requests: dict[str, RequestInfo] = {info.name: info for info in manifest.requests}

    def __repr__(self) -> str:
        return f"<Member {self.manifest.address} in_flight={self.in_flight}>"

    @property
    def address(self) -> Address:
        return self.manifest.address


class Registry:
    """Who is there. Watchers are told of every change."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._members: dict[str, dict[Address, Member]] = {}
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

    def join(self, manifest: Manifest) -> bool:
        """Adds an instance, or replaces what is known of it. Says whether it is a new one."""
        members = self._members.setdefault(manifest.service, {})
        known = members.get(manifest.address)
        if known is not None and known.manifest.instance == manifest.instance:
            if known.manifest == manifest:
                return False  # it says again that it is there
            known.manifest = manifest
            known.requests = {info.name: info for info in manifest.requests}
            new = False
        else:
            members[manifest.address] = Member(manifest)
            new = True
        self._tell()
        return new

    def leave(self, address: Address) -> bool:
        """Removes an instance. Says whether it was there."""
        members = self._members.get(address.service, {})
        if members.pop(address, None) is None:
            return False
        self._tell()
        return True

    def members(self, service: str) -> list[Member]:
        """The live instances of a service."""
        return list(self._members.get(service, {}).values())

    def pick(self, service: str, without: frozenset[Address] = frozenset()) -> Member | None:
        """An instance to ask: of two drawn by chance, the one with less under way here."""
        members = self._members.get(service)
        if not members:
            return None
        able = [member for address, member in members.items() if address not in without] if without else list(members.values())
        if len(able) < 2:
            return able[0] if able else None
        first, second = (able[index] for index in self._chance.sample(len(able), 2))
        return first if first.in_flight <= second.in_flight else second

    def has_instance(self, instance: str) -> bool:
        """Whether the instance with this id is there."""
        return any(member.manifest.instance == instance for member in self)

    async def wait_for(self, *services: str) -> None:
        """Waits until there is an instance of each service."""
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
