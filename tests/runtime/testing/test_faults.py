"""Fault injection does what it says: lossy, slow, and repeating links, cut links, and crashes around commits."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime import DeadlineExceeded, Node, Transport
from runtime.network import Address, Envelope, PeerUnreachable, Topic
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import Crash, CrashingDatabase, CrashPoints, Faults, FaultyTransport, Kit, RecordingReceiver, eventually
from tests.runtime.node.services import Base, Poke, base
from transports.memory import MemoryNetwork, MemoryTransport


async def crash(transport: Transport) -> None:
    assert isinstance(transport, FaultyTransport)
    assert isinstance(transport._inner, MemoryTransport)
    transport._inner.crash()


@pytest.mark.parametrize("case", Kit.cases())
async def test_a_link_without_faults_conforms(case: str) -> None:
    network = MemoryNetwork()
    await Kit(lambda: FaultyTransport(MemoryTransport(network), Faults(), 1), crash).run(case)


@asynccontextmanager
async def link(faults: Faults, seed: int = 1) -> AsyncGenerator[tuple[FaultyTransport, RecordingReceiver], None]:
    """Open a faulty sender, and a receiver that listens and subscribes."""
    network, listener = MemoryNetwork(), RecordingReceiver()
    sender, receiver = FaultyTransport(MemoryTransport(network), faults, seed), MemoryTransport(network)
    await sender.open("sender", RecordingReceiver())
    await receiver.open("receiver", listener)
    await receiver.listen("fleet")
    await receiver.subscribe(Topic("signal", "rides", "Ping"), "fleet", broadcast=True)
    try:
        yield sender, listener
    finally:
        await sender.close()
        await receiver.close()


async def send(sender: Transport, count: int) -> None:
    for number in range(count):
        await sender.unicast(Address("fleet", "receiver"), Envelope("request", str(number), "fleet.Ask"), "rides")


def ids(listener: RecordingReceiver) -> list[int]:
    return [int(envelope.id) for envelope, _ in listener.envelopes]


async def test_a_lossy_link_loses_the_same_envelopes_with_the_same_seed() -> None:
    arrived: list[list[int]] = []
    for seed in (1, 1, 2):
        async with link(Faults(loss=0.5), seed) as (sender, listener):
            await send(sender, 100)
            await eventually(lambda: len(listener.envelopes) + sender.lost == 100, "the rest arrives")
            assert 20 < sender.lost < 80
            assert ids(listener) == sorted(ids(listener))
            arrived.append(ids(listener))
    assert arrived[0] == arrived[1]
    assert arrived[0] != arrived[2]


async def test_a_link_that_duplicates_declares_and_does_it() -> None:
    async with link(Faults(duplication=1.0)) as (sender, listener):
        assert sender.capabilities.duplicates
        await send(sender, 3)
        await sender.anycast("fleet", Envelope("request", "3", "fleet.Ask"), "rides")
        await sender.multicast(Topic("signal", "rides", "Ping"), Envelope("signal", "4", "rides.Ping"), "rides")
        await eventually(lambda: ids(listener) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], "everything arrives twice")


async def test_delayed_envelopes_overtake_each_other_and_are_dropped_when_the_node_leaves() -> None:
    async with link(Faults(delay=0.01)) as (sender, listener):
        assert not sender.capabilities.ordered
        await send(sender, 50)
        await eventually(lambda: len(listener.envelopes) == 50, "everything arrives")
        assert ids(listener) != sorted(ids(listener))
        sender.faults = Faults(delay=60)
        await send(sender, 50)
        await sender.close()
        assert len(listener.envelopes) == 50


async def test_a_delayed_envelope_to_nobody_is_lost_and_one_without_delay_raises() -> None:
    nobody = Address("fleet", "nobody")
    async with link(Faults()) as (sender, _):
        with pytest.raises(PeerUnreachable):
            await sender.unicast(nobody, Envelope("request", "1", "fleet.Ask"), "rides")
        sender.faults = Faults(delay=0.001)
        await sender.unicast(nobody, Envelope("request", "1", "fleet.Ask"), "rides")
        await eventually(lambda: sender.lost == 1, "it counts as lost")


async def test_a_cut_link_loses_everything_until_it_is_whole_again() -> None:
    network = MemoryNetwork()
    transport = FaultyTransport(MemoryTransport(network), Faults(), 1)
    async with Node([Base], MemoryTransport(network)), Node([], transport) as node:
        ctx = node.client("test", (base,))
        await node.registry.wait_for("base")
        assert transport.connected
        transport.cut = True
        assert "[CUT] lost=0" in repr(transport)
        with pytest.raises(DeadlineExceeded):
            await ctx.request(Poke(), timeout=0.05)
        await eventually(lambda: transport.lost == 2, "the request and its cancel are lost")
        transport.cut = False
        assert await ctx.request(Poke()) == 1


async def test_each_request_runs_once_on_a_link_that_delays_and_duplicates() -> None:
    network = MemoryNetwork()
    faults = Faults(delay=0.005, duplication=0.5)
    async with (
        Node([Base], FaultyTransport(MemoryTransport(network), faults, 1)) as host,
        Node([], FaultyTransport(MemoryTransport(network), faults, 2)) as node,
    ):
        await node.registry.wait_for("base")
        ctx = node.client("test", (base,))
        await asyncio.gather(*(ctx.request(Poke()) for _ in range(50)))
        service = host.service(Base)
        assert service is not None
        assert service.pokes == 50


async def test_a_crash_is_injected_at_the_chosen_side_of_the_chosen_commit(tmp_path: Path) -> None:
    points = CrashPoints()
    database = CrashingDatabase(SqliteDatabase(tmp_path / "x.sqlite", durable=False), points)
    await database.open()
    try:
        await database.script("CREATE TABLE t (n INTEGER)")
        points.arm("before commit", skip=1)
        await database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(Crash, match="before commit"):
            await database.execute("INSERT INTO t VALUES (2)")
        points.arm("after commit")
        with pytest.raises(Crash, match="after commit"):
            await database.execute("INSERT INTO t VALUES (3)")
        assert [row["n"] for row in await database.fetch("SELECT n FROM t ORDER BY n")] == [1, 3]
        assert points.reached == ["before commit", "after commit", "before commit", "before commit", "after commit"]
        assert not issubclass(Crash, Exception), "no handler can catch it"
    finally:
        await database.close()
