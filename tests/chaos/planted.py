"""Bugs that are planted into the processes, so that the checker proves that it finds such bugs; and a clock that can be set."""

from pathlib import Path

from tests.set_clock import SET_CLOCK

BUGS = {
    "acknowledge": """
import asyncio
from runtime.execution.unit_of_work import Transactions

_run = Transactions.run

async def run(self, method, message, ctx, check, *more):
    '''Answers before the commit.'''
    answered = asyncio.get_running_loop().create_future()

    async def handle(message, ctx, tx):
        reply = await method(message, ctx, tx)
        if not answered.done():
            answered.set_result(reply)
        await asyncio.sleep(0.3)
        return reply

    task = asyncio.ensure_future(_run(self, handle, message, ctx, check, *more))
    await asyncio.wait((task, answered), return_when=asyncio.FIRST_COMPLETED)
    return answered.result() if answered.done() else await task

Transactions.run = run
""",
    "dedup": """
import os
from runtime.durable.idempotency import Once

_run = Once.run

async def run(self, scope, *rest):
    '''Takes every repetition for a new request.'''
    return await _run(self, scope._replace(key=os.urandom(8).hex()), *rest)

Once.run = run
""",
    "cursor": """
import asyncio
from runtime.execution.event_endpoint import EventsEndpoint
from runtime.storage.database import Guard

_apply = EventsEndpoint.apply

async def apply(self, source, events, guard, advance):
    '''Moves the cursor in a transaction of its own.'''
    async with self._transactions.database.transaction(guard):
        pass
    await asyncio.sleep(1)
    return await _apply(self, source, events, Guard("UPDATE callboard_stream_head SET seq = seq", ()), advance)

EventsEndpoint.apply = apply
""",
    "hint": """
from runtime.durable import subscription

subscription.Subscription.hint = lambda self, head=None: None  # hints are lost, and nothing looks again
subscription.POLL_SECONDS = 3600.0
""",
}
"""The code of each bug, which runs before the service does."""


def plant(folder: Path, clock: Path, bug: str) -> None:
    """Let the process in a folder start with a bug, if one is named, and with a clock that a file sets."""
    code = SET_CLOCK.format(file=str(clock)) + (BUGS[bug] if bug else "")
    (folder / "sitecustomize.py").write_text(code)
