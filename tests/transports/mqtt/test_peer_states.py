"""The states of a peer on MQTT, from the events that its node sees. There is no network here."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from runtime import Clock
from runtime.network import Address, Envelope, Manifest, PeerUnreachable, Receiver, TransportError
from transports.mqtt.presence import PeerEvent, PeerState, Presence, state_after

HEARTBEAT = 1.0
PATIENCE = 10.0
HERE = Address("echo", "one")
OTHER = Address("echo", "two")


class SteppedClock(Clock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def monotonic(self) -> float:
        return self.time


class Recorder(Receiver):
    """A receiver that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def load(self, service: str) -> int:
        return 0

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self.calls.append(f"joined {manifest.address} {load}")

    def suspected(self, address: Address) -> None:
        self.calls.append(f"suspected {address}")

    def left(self, address: Address, *, lost: bool) -> None:
        self.calls.append(f"{'lost' if lost else 'left'} {address}")

    def receive(self, envelope: Envelope, to: str) -> None:
        raise AssertionError("presence receives no envelopes")

    def cut(self) -> None:
        raise AssertionError("the transport reports this")

    def unreadable(self) -> None:
        raise AssertionError("the transport reports this")

    def failed(self, error: TransportError) -> None:
        raise AssertionError("the transport reports this")

    def drain(self) -> list[str]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Harness:
    """A presence with a clock and a receiver that the test controls."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.receiver = Recorder()
        self.presence = Presence(self.receiver, self.clock, HEARTBEAT, PATIENCE)

    def announce(self, address: Address = HERE, *, kept: bool = False, load: int = 0) -> None:
        self.presence.heard(address, manifest(address), load, kept=kept)

    def withdraw(self, address: Address = HERE) -> None:
        self.presence.heard(address, b"", 0, kept=False)

    def cut(self) -> None:
        """Cut the link and restore it."""
        self.presence.cut()
        self.presence.restored()

    def silence(self, seconds: float) -> None:
        self.clock.time += seconds
        self.presence.check()

    @property
    def states(self) -> str:
        return repr(self.presence).removeprefix("<Presence ").removesuffix(">")


def manifest(address: Address) -> bytes:
    return msgspec.json.encode(Manifest(service=address.service, node=address.node, instance="x"))


@pytest.fixture
def harness() -> Harness:
    return Harness()


async def test_an_instance_that_announces_itself_is_live(harness: Harness) -> None:
    assert repr(harness.presence) == "<Presence >"
    harness.announce(load=3)
    assert harness.states == "echo@one [LIVE]"
    assert harness.receiver.drain() == ["joined echo@one 3"]
    assert harness.presence.is_live(HERE)


async def test_an_instance_that_only_the_broker_remembers_is_retained_until_the_broker_confirms_it(harness: Harness) -> None:
    harness.announce(kept=True)
    assert harness.states == "echo@one [RETAINED]"
    assert harness.receiver.drain() == ["joined echo@one 0", "suspected echo@one"]
    assert not harness.presence.is_live(HERE)
    harness.presence.mark_live(HERE)
    assert harness.states == "echo@one [LIVE]"


async def test_a_retained_instance_that_nobody_confirms_is_lost(harness: Harness) -> None:
    harness.announce(kept=True)
    harness.receiver.drain()
    with pytest.raises(PeerUnreachable, match="echo@one is not there"):
        harness.presence.mark_absent(HERE)
    assert harness.states == ""
    assert harness.receiver.drain() == ["lost echo@one"]
    harness.announce(kept=True)
    harness.silence(3.1)
    assert harness.states == "", "after three heartbeats"


async def test_a_silent_instance_is_suspected_then_lost(harness: Harness) -> None:
    harness.announce()
    harness.receiver.drain()
    harness.silence(2)
    assert harness.states == "echo@one [LIVE]"
    harness.silence(0.1)
    assert harness.states == "echo@one [SUSPECTED]"
    assert harness.presence.is_live(HERE), "requests are still sent without asking the broker"
    harness.silence(1)
    assert harness.receiver.drain() == ["suspected echo@one"], "once"
    harness.announce(kept=True)
    assert harness.states == "echo@one [LIVE]"
    harness.silence(3)
    harness.silence(7.1)
    assert harness.states == ""
    assert harness.receiver.drain() == ["joined echo@one 0", "suspected echo@one", "lost echo@one"]


async def test_the_will_of_a_node_loses_its_instances(harness: Harness) -> None:
    harness.announce()
    harness.announce(OTHER)
    harness.receiver.drain()
    harness.presence.gone("one")
    assert harness.states == "echo@two [LIVE]"
    assert harness.receiver.drain() == ["lost echo@one"]


async def test_an_instance_that_withdraws_is_lost_when_its_node_is_gone(harness: Harness) -> None:
    """Until then it may answer what it has begun. A request that it never received fails at that moment, and no sooner."""
    harness.announce()
    harness.withdraw()
    assert harness.states == "echo@one [WITHDRAWN]"
    assert harness.receiver.drain() == ["joined echo@one 0", "left echo@one"]
    harness.withdraw()
    harness.silence(30)
    assert harness.states == "echo@one [WITHDRAWN]"
    assert harness.receiver.drain() == []
    harness.presence.gone("one")
    assert harness.states == ""
    assert harness.receiver.drain() == ["lost echo@one"]


async def test_an_instance_that_withdraws_is_forgotten_when_the_link_is_cut(harness: Harness) -> None:
    harness.announce()
    harness.withdraw()
    harness.presence.cut()
    assert harness.states == ""


async def test_an_instance_that_withdraws_may_come_back_or_be_lost(harness: Harness) -> None:
    harness.announce()
    harness.withdraw()
    harness.announce()
    assert harness.states == "echo@one [LIVE]"
    harness.withdraw()
    harness.receiver.drain()
    harness.presence.gone("one")
    assert harness.receiver.drain() == ["lost echo@one"]


async def test_a_cut_link_leaves_live_instances_in_doubt_until_they_are_heard_of(harness: Harness) -> None:
    harness.announce()
    harness.announce(OTHER, kept=True)
    harness.receiver.drain()
    harness.presence.cut()
    assert harness.states == "echo@one [CUT], echo@two [CUT_RETAINED]"
    assert harness.receiver.drain() == ["suspected echo@one", "suspected echo@two"]
    harness.presence.restored()
    harness.announce(kept=True)
    harness.announce(OTHER, kept=True)
    assert harness.states == "echo@one [RETURNING], echo@two [RETAINED]"
    harness.announce()
    harness.presence.mark_live(OTHER)
    assert harness.states == "echo@one [LIVE], echo@two [LIVE]"


async def test_a_second_cut_before_anything_was_heard_leaves_less_time(harness: Harness) -> None:
    harness.announce()
    harness.cut()
    harness.silence(9)
    assert harness.states == "echo@one [CUT]"
    harness.cut()
    assert harness.states == "echo@one [CUT_RETAINED]"
    harness.silence(3.1)
    assert harness.states == ""


async def test_an_instance_that_is_reconnecting_is_waited_for(harness: Harness) -> None:
    harness.announce()
    harness.cut()
    harness.announce(kept=True)
    assert harness.states == "echo@one [RETURNING]"
    harness.receiver.drain()
    harness.presence.mark_absent(HERE)
    assert harness.states == "echo@one [CUT]"
    assert harness.receiver.drain() == ["suspected echo@one"]
    harness.announce(kept=True)
    harness.clock.time += PATIENCE
    with pytest.raises(PeerUnreachable, match="is not there"):
        harness.presence.mark_absent(HERE)
    assert harness.states == ""


async def test_an_instance_that_has_announced_itself_during_the_probe_is_not_absent(harness: Harness) -> None:
    harness.announce(kept=True)
    probe = harness.presence.probe(HERE)
    assert probe is not None
    async with probe:
        harness.announce()
        harness.presence.mark_absent(HERE)
    assert harness.states == "echo@one [LIVE]"


async def test_a_request_waits_until_its_instance_is_heard_of(harness: Harness) -> None:
    harness.announce()
    await harness.presence.wait_until_known(HERE)
    harness.cut()
    waiting = asyncio.create_task(harness.presence.wait_until_known(HERE))
    await asyncio.sleep(0)
    assert not waiting.done()
    harness.announce(kept=True)
    await waiting
    await harness.presence.wait_until_known(Address("echo", "unheard"))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (lambda harness: harness.announce(OTHER), "another instance has"),
        (lambda harness: harness.presence.gone("one"), "has not come back"),
        (lambda harness: harness.silence(PATIENCE + 0.1), "has not come back"),
    ],
)
async def test_a_request_stops_waiting_for_an_instance_that_does_not_return(
    harness: Harness, event: Callable[[Harness], None], text: str
) -> None:
    harness.announce()
    harness.cut()
    waiting = asyncio.create_task(harness.presence.wait_until_known(HERE))
    await asyncio.sleep(0)
    event(harness)
    with pytest.raises(PeerUnreachable, match=text):
        await waiting


async def test_a_manifest_that_is_unreadable_or_another_instances_changes_nothing(harness: Harness) -> None:
    for payload in (b"{", b"[" * 5000, manifest(OTHER)):
        with pytest.raises(ValueError, match="manifest"):
            harness.presence.heard(HERE, payload, 0, kept=False)
    assert harness.states == ""
    assert harness.receiver.drain() == []


@pytest.mark.parametrize(
    ("event", "states"),
    [
        # in the order RETAINED, LIVE, SUSPECTED, CUT, CUT_RETAINED, RETURNING, WITHDRAWN
        (PeerEvent.ANNOUNCED, "LIVE LIVE LIVE LIVE LIVE LIVE LIVE"),
        (PeerEvent.REMEMBERED, "RETAINED LIVE LIVE RETURNING RETAINED RETURNING RETURNING"),
        (PeerEvent.WITHDRAWN, "WITHDRAWN WITHDRAWN WITHDRAWN WITHDRAWN WITHDRAWN WITHDRAWN WITHDRAWN"),
        (PeerEvent.SILENT, "RETAINED SUSPECTED SUSPECTED CUT CUT_RETAINED RETURNING WITHDRAWN"),
        (PeerEvent.LINK_CUT, "CUT_RETAINED CUT CUT CUT_RETAINED CUT_RETAINED CUT_RETAINED WITHDRAWN"),
        (PeerEvent.CONFIRMED, "LIVE LIVE SUSPECTED CUT CUT_RETAINED LIVE WITHDRAWN"),
        (PeerEvent.UNCONFIRMED, "RETAINED LIVE SUSPECTED CUT CUT_RETAINED CUT WITHDRAWN"),
    ],
)
def test_the_state_after_each_event(event: PeerEvent, states: str) -> None:
    assert [state_after(event, state).name for state in PeerState] == states.split()
