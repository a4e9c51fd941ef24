"""What `on_start` waits for: services that it calls and that have no instance yet."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from runtime.execution.caller import Caller
from runtime.execution.environment import Environment
from runtime.network.transport import TransportError

_REMINDER = 10.0
"""The seconds after which the log repeats what a starting service waits for."""


class Dependencies:
    """The services that one service calls in `on_start`. A request to one without an instance waits until there is one.

    Args:
        name: the name of the service.
        environment: the environment of its node.
        caller: makes the requests of the node.
        others: returns the dependencies of every service on the node.
        waits: called with True when a wait begins, and with False when it ends.
    """

    def __init__(
        self,
        name: str,
        environment: Environment,
        caller: Caller,
        others: "Callable[[], Iterable[Dependencies]]",
        waits: Callable[[bool], None],
    ) -> None:
        self.name = name
        self._environment = environment
        self._caller = caller
        self._others = others
        self._waits = waits
        self._wait: tuple[str, asyncio.Timeout] | None = None

    def __repr__(self) -> str:
        return f"<Dependencies of {self.name} [{'READY' if self._wait is None else 'WAITING'}]>"

    async def wait_for(self, service: str, request: str | None, timeout: float | None) -> None:
        """Wait until a service has an instance with a request, but not for ever: the request fails without one.

        Services of one node that wait for each other stop waiting at once.

        Args:
            request: the full name of the request; None if every instance has it.
            timeout: the timeout of the request, in seconds.
        """
        endpoints = self._caller.local.get(service)
        if endpoints is not None and (request is None or request in endpoints):
            return
        log, limit, registry = self._environment.log, self._environment.settings.start_timeout, self._environment.registry
        try:
            async with asyncio.timeout(limit if timeout is None else min(limit, timeout)) as wait:
                await self._environment.watch(service)
                while not registry.has(service, request):
                    circle = self._circle_with(service)
                    if circle:
                        for one in circle:
                            one._give_up()
                        names = " and ".join(sorted({f"{one.name}.on_start" for one in (self, *circle)}))
                        log.error("%s wait for each other: make one of the requests later, for example in @every", names)
                        return
                    self._wait = service, wait
                    self._waits(True)
                    old = registry.has(service, None)
                    missing = f"has no instance with {request}" if old else "has no instance"
                    log.warning("%s.on_start waits for %s, which %s yet: start it", self.name, service, missing)
                    await _until_reminder(self._until(service, request))
        except (TimeoutError, TransportError):
            return
        finally:
            self._wait = None
            self._waits(False)

    async def _until(self, service: str, request: str | None) -> None:
        while not self._environment.registry.has(service, request):
            await self._environment.registry.changed()

    def _circle_with(self, service: str) -> "list[Dependencies]":
        """Return the services of this node of which the first is `service`, each waits for the next, and the last for this one."""
        by_name = {one.name: one for one in self._others()}
        circle: list[Dependencies] = []
        while service in by_name and len(circle) < len(by_name):
            one = by_name[service]
            circle.append(one)
            if one is self:
                return circle
            if one._wait is None:
                break
            service = one._wait[0]
        return []

    def _give_up(self) -> None:
        """Let the request that waits fail now."""
        if self._wait is not None:
            self._wait[1].reschedule(0)


async def _until_reminder(work: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine, but return after a while even if it has not ended."""
    try:
        async with asyncio.timeout(_REMINDER):
            await work
    except TimeoutError:
        return
