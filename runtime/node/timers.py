"""The loop of an `@every` method."""

import asyncio
import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

from runtime.contract.errors import ServiceError
from runtime.durable.leases import TimerLease
from runtime.durable.subscription import is_transient
from runtime.execution.endpoint import TimerEndpoint
from runtime.execution.instance import Instance
from runtime.stacks import of_task
from runtime.storage.database import DatabaseError
from runtime.tasks import watching

_SOONEST, _LATEST = 10.0, 600.0
"""The seconds within which a run is first reported that has not ended: after the interval of its timer, between these two."""


async def repeat(
    instance: Instance, endpoint: TimerEndpoint, seconds: float, lease: TimerLease | None, stopping: asyncio.Event
) -> None:
    """Run a timer until `stopping` is set: the interval lies between the end of one run and the start of the next.

    With a lease, it runs when this instance gets the lease.

    A run that has not ended for long is reported, and then again whenever its time has doubled. It does not end at `stopping`:
    it holds a slot in the mailbox, and the drain waits for it.
    """
    clock = instance.clock
    started = 0.0
    labels = {"service": instance.name, "timer": endpoint.title.rpartition(".")[2]}
    instance.metrics.gauge("timer_run_seconds", lambda: clock.monotonic() - started if started else 0.0, **labels)
    limit = min(max(seconds, _SOONEST), _LATEST)
    pause = seconds if lease is None else 0.0
    while True:
        due = clock.monotonic() + pause
        if await _pause(instance, pause, stopping):
            return
        pause = seconds
        late = int((clock.monotonic() - due) // seconds)
        if late and lease is None:
            instance.count_missed(labels["timer"], late)
        try:
            if lease is not None and (pause := await lease.take()):
                continue
            pause, started = seconds if lease is None else 0.0, clock.monotonic()
            with watching(partial(_report, instance, endpoint, limit), limit):
                async with nullcontext() if lease is None else lease.held():
                    await endpoint.tick(instance.context())
        except (ServiceError, DatabaseError) as error:
            if not is_transient(error):
                raise
            key, message = ("timer", endpoint.title, type(error)), "%s failed, and is tried again in %g s: %s"
            instance.environment.repeats.log(instance.log, logging.WARNING, key, message, endpoint.title, seconds, error)
        finally:
            started = 0.0


async def _pause(instance: Instance, seconds: float, stopping: asyncio.Event) -> bool:
    """Wait for an interval, but not longer than until the stop. Return whether that has begun."""
    waiting = asyncio.ensure_future(stopping.wait())
    sleeping = asyncio.ensure_future(instance.clock.sleep(seconds))
    try:
        await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        sleeping.cancel()
    return stopping.is_set()


async def _report(instance: Instance, endpoint: TimerEndpoint, seconds: float) -> None:
    while True:
        doing = running(endpoint)
        instance.log.warning(
            "%s has run for %.0f s and has not ended, so it does not run again%s",
            endpoint.title,
            seconds,
            f": {doing}" if doing else "",
        )
        await instance.clock.sleep(seconds)
        seconds *= 2


def running(endpoint: TimerEndpoint) -> str | None:
    """Return what the current run of a timer is doing, or None."""
    task: asyncio.Task[Any] | None = endpoint.running
    return None if task is None or task.done() else of_task(task)
