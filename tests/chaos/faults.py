"""The faults, which a seed chooses."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from tests.chaos.machine import Machine, Member

Fault = Callable[[Machine, random.Random], Awaitable[None]]


def _any(machine: Machine, rng: random.Random) -> Member:
    return rng.choice(machine.members)


async def kill(machine: Machine, rng: random.Random) -> None:
    _any(machine, rng).signal(signal.SIGKILL)


async def stop(machine: Machine, rng: random.Random) -> None:
    _any(machine, rng).signal(signal.SIGTERM)


async def freeze_process(machine: Machine, rng: random.Random) -> None:
    member = _any(machine, rng)
    member.signal(signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(1, 7))
    member.signal(signal.SIGCONT)


async def cut(machine: Machine, rng: random.Random) -> None:
    _any(machine, rng).link.cut()


async def freeze_link(machine: Machine, rng: random.Random) -> None:
    link = _any(machine, rng).link
    link.freeze()
    await asyncio.sleep(rng.uniform(1, 8))
    link.thaw()


async def half_open(machine: Machine, rng: random.Random) -> None:
    link = _any(machine, rng).link
    link.half_open()
    await asyncio.sleep(rng.uniform(1, 8))
    link.thaw()


async def slow(machine: Machine, rng: random.Random) -> None:
    link = _any(machine, rng).link
    link.rate = rng.randint(400, 4000)
    await asyncio.sleep(rng.uniform(2, 5))
    link.rate = None


async def reset_again_and_again(machine: Machine, rng: random.Random) -> None:
    link = _any(machine, rng).link
    for _ in range(3):
        link.cut()
        await asyncio.sleep(2)


async def set_clock(machine: Machine, rng: random.Random) -> None:
    member = _any(machine, rng)
    member.clock.write_text(str(rng.choice((-7200, -60, 60, 7200))))
    await asyncio.sleep(rng.uniform(1, 5))
    member.clock.write_text("0")


async def kill_broker(machine: Machine, rng: random.Random) -> None:
    """Kill the broker. It keeps nothing."""
    if machine.broker is not None:
        await machine.broker.stop(signal.SIGKILL)
        await asyncio.sleep(rng.uniform(0, 3))
        await machine.broker.start()


async def kill_postgres(machine: Machine, rng: random.Random) -> None:
    if machine.postgres is not None:
        await asyncio.to_thread(machine.postgres.kill)
        await asyncio.sleep(rng.uniform(0, 2))
        await asyncio.to_thread(machine.postgres.start)


async def end_connections(machine: Machine, rng: random.Random) -> None:
    """End all connections to PostgreSQL."""
    if machine.postgres is not None:
        await asyncio.to_thread(
            machine.postgres.run,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'callboard%'",
        )


async def freeze_database(machine: Machine, rng: random.Random) -> None:
    if machine.database is not None:
        machine.database.freeze()
        await asyncio.sleep(rng.uniform(1, 5))
        machine.database.thaw()


EVERYWHERE: tuple[Fault, ...] = (
    kill,
    kill,
    stop,
    freeze_process,
    cut,
    freeze_link,
    half_open,
    slow,
    reset_again_and_again,
    set_clock,
)
WITH_BROKER: tuple[Fault, ...] = (kill_broker,)
ON_POSTGRES: tuple[Fault, ...] = (kill_postgres, end_connections, freeze_database)


async def inject(machine: Machine, seed: int, seconds: float, kinds: tuple[Fault, ...] = ()) -> list[str]:
    """Inject a fault a second. Return their names."""
    rng = random.Random(seed)
    chosen = kinds or (
        *EVERYWHERE, *(WITH_BROKER if machine.broker is not None else ()), *(ON_POSTGRES if machine.postgres is not None else ()),
    )  # fmt: skip
    servers = asyncio.Lock()
    names: list[str] = []

    async def run(fault: Fault) -> None:
        if fault in (kill_broker, kill_postgres, end_connections):
            async with servers:  # one at a time: each starts its server again
                await fault(machine, rng)
        else:
            await fault(machine, rng)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(round(seconds)):
            fault = rng.choice(chosen)
            names.append(fault.__name__)
            tasks.create_task(run(fault))
            await asyncio.sleep(1)
    return names
