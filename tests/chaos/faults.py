"""The faults, which a seed chooses."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from tests.chaos.machine import SERVICES, Machine, Member

Fault = Callable[[Machine, random.Random], Awaitable[None]]


BEGINNING = "beginning.backup"
"""The backup of notices from before the first fault, in the folder of each of its processes."""


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


async def delay(machine: Machine, rng: random.Random) -> None:
    link = _any(machine, rng).link
    link.delay = 5.0
    await asyncio.sleep(rng.uniform(3, 8))
    link.delay = 0.0


async def repeat(machine: Machine, rng: random.Random) -> None:
    """Let everything arrive twice that is sent by way of a link."""
    link = _any(machine, rng).link
    link.twice = True
    link.cut()
    await asyncio.sleep(rng.uniform(2, 8))
    link.twice = False
    link.cut()


async def fill_disk(machine: Machine, rng: random.Random) -> None:
    await asyncio.to_thread(machine.disk.fill)
    await asyncio.sleep(rng.uniform(0.5, 3))
    machine.disk.free()
    if machine.cluster is not None:  # it may have ended
        await asyncio.to_thread(machine.cluster.start)


async def roll(machine: Machine, rng: random.Random) -> None:
    """Roll the newer version of a service in, one process after the other, and roll it back."""
    name = rng.choice(SERVICES)
    members = [member for member in machine.members if member.name == name]
    for is_newer in (True, False):
        for member in members:
            member.is_newer = is_newer
            member.signal(signal.SIGTERM)
            await asyncio.sleep(rng.uniform(0.5, 2))


async def restore(machine: Machine, rng: random.Random) -> None:
    """Stop a service, and restore a backup of its database.

    That of notices is from the beginning: it has only what it can apply again. What others have answered and the events of it
    are not in an older backup, so theirs are from the moment when they have been stopped.
    """
    name = rng.choice(SERVICES)
    members = [member for member in machine.members if member.name == name]
    await asyncio.gather(*(member.hold() for member in members))
    file = f"{name}-{rng.getrandbits(32)}.backup"
    try:
        for arguments in (("backup", name, file), ("restore", name, BEGINNING if name == "notices" else file)):
            for _ in range(8):  # other faults are in its way
                status, _output = await members[0].command(*arguments)
                if status == 0:
                    break
                await asyncio.sleep(0.5)
            else:
                return
    finally:
        for member in members:
            member.release()


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
    if machine.cluster is not None:
        await asyncio.to_thread(machine.cluster.kill)
        await asyncio.sleep(rng.uniform(0, 2))
        await asyncio.to_thread(machine.cluster.start)


async def fail_over(machine: Machine, rng: random.Random) -> None:
    """Kill PostgreSQL, and promote its standby."""
    if machine.cluster is not None:
        await machine.cluster.fail_over()


async def end_connections(machine: Machine, rng: random.Random) -> None:
    """End all connections to PostgreSQL."""
    if machine.cluster is not None:
        await asyncio.to_thread(machine.cluster.end_connections)


async def freeze_database(machine: Machine, rng: random.Random) -> None:
    if machine.cluster is not None:
        machine.cluster.link.freeze()
        await asyncio.sleep(rng.uniform(1, 5))
        machine.cluster.link.thaw()


EVERYWHERE: tuple[Fault, ...] = (
    kill,
    kill,
    stop,
    freeze_process,
    cut,
    freeze_link,
    half_open,
    slow,
    delay,
    repeat,
    reset_again_and_again,
    set_clock,
    fill_disk,
    roll,
    restore,
)
WITH_BROKER: tuple[Fault, ...] = (kill_broker,)
ON_POSTGRES: tuple[Fault, ...] = (kill_postgres, fail_over, end_connections, freeze_database)
_ONE_AT_A_TIME = (kill_broker, kill_postgres, fail_over, end_connections, fill_disk)
"""Each of them needs the servers as they were, or starts them again."""


async def inject(machine: Machine, seed: int, seconds: float, kinds: tuple[Fault, ...] = ()) -> list[str]:
    """Inject a fault a second. Return their names."""
    rng = random.Random(seed)
    chosen = kinds or (
        *EVERYWHERE, *(WITH_BROKER if machine.broker is not None else ()), *(ON_POSTGRES if machine.cluster is not None else ()),
    )  # fmt: skip
    servers, backups = asyncio.Lock(), asyncio.Lock()
    names: list[str] = []
    for member in machine.members:
        if member.name == "notices":
            status, output = await member.command("backup", "notices", BEGINNING)
            assert status == 0, output

    async def run(fault: Fault) -> None:
        if fault in _ONE_AT_A_TIME:
            async with servers:
                await fault(machine, rng)
        elif fault is restore:
            async with backups:
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
