"""The states of a peer over HTTP, from the answers that its location gives. No network: the test plays the client."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import msgspec
import pytest
from yarl import URL

from runtime import Clock, Random
from runtime.network import Address, Envelope, LinkLost, Manifest, PeerUnreachable, Receiver, TransportError
from runtime.testing import eventually
from transports.http import fields
from transports.http.client import Client, Location, Untrusted
from transports.http.messages import Answer
from transports.http.peer import Peer, PeerState
from transports.http.presence import News, Presence
from transports.http.settings import HttpSettings

REFUSES = PeerUnreachable("the connection was refused")
BREAKS = LinkLost("the connection was lost")


class HurriedClock(Clock):
    """A clock that sleeps only for a moment."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.001)


class PlayedClient(Client):
    """Answers questions with what the test has put in, or raises it; further questions wait."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[Answer | Exception] = asyncio.Queue()
        self.asked = 0

    async def get(self, location: Location, path: str, fields: dict[str, str]) -> Answer:
        self.asked += 1
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Recorder(Receiver):
    """A receiver that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def load(self, service: str) -> int:
        return 0

    def receive(self, envelope: Envelope, to: str) -> None:
        raise AssertionError("nothing was subscribed to")

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self.calls.append(f"joined {manifest.address}")

    def suspected(self, address: Address) -> None:
        self.calls.append(f"suspected {address}")

    def left(self, address: Address, *, lost: bool) -> None:
        self.calls.append(f"{'lost' if lost else 'left'} {address}")

    def cut(self) -> None:
        raise AssertionError("there is no single link over HTTP")

    def unreadable(self) -> None:
        raise AssertionError("presence receives no requests")

    def failed(self, error: TransportError) -> None:
        raise AssertionError("presence does not fail")

    def drain(self) -> list[str]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Harness:
    """The presence of one service with one location."""

    def __init__(self, heartbeat: float = 30.0) -> None:
        clock = HurriedClock()
        self.client = PlayedClient()
        self.receiver = Recorder()
        self.lost: list[str] = []
        self.presence = Presence(
            "ours", self.receiver, self.client, HttpSettings(heartbeat=heartbeat, connect_timeout=0.1), clock, Random(clock),
            {"echo": (URL("http://127.0.0.1:9"),)}, lambda service: "", lambda address, location: self.lost.append(f"{address} {location}"),
        )  # fmt: skip

    @property
    def state(self) -> str:
        """The location as `repr` shows it."""
        return repr(self.presence).removeprefix("<Presence ").removesuffix(">")

    async def after(self, *answers: Answer | Exception, state: str) -> None:
        """Give answers, and wait until they were handled."""
        for answer in answers:
            self.client.answers.put_nowait(answer)
        await eventually(lambda: self.client.answers.empty() and self.state == state, f"{self.state} becomes {state}")


def present(node: str = "one", version: int = 1) -> Answer:
    manifest = Manifest(service="echo", node=node, instance="x")
    return Answer(200, {fields.NODE: node}, msgspec.json.encode(News(version, 0, 0, manifest)))


def without_service(node: str = "one") -> Answer:
    return Answer(404, {fields.NODE: node}, b"{}")


@pytest.fixture
async def harness() -> AsyncGenerator[Harness, None]:
    made = Harness()
    watching = asyncio.create_task(made.presence.watch("echo"))
    await eventually(lambda: made.client.asked == 1, "the location is asked")
    assert made.state == "- at 127.0.0.1:9 [UNASKED]"
    yield made
    await watching
    await made.presence.close()
    assert repr(made.presence) == "<Presence >"


async def test_a_location_where_nobody_answers_is_absent(harness: Harness) -> None:
    await harness.after(REFUSES, state="- at 127.0.0.1:9 [ABSENT]")
    assert harness.receiver.drain() == []


async def test_a_node_without_the_service_is_absent_until_it_has_it(harness: Harness) -> None:
    await harness.after(without_service(), state="- at 127.0.0.1:9 [ABSENT]")
    await harness.after(present(), state="one at 127.0.0.1:9 [PRESENT]")
    assert harness.receiver.drain() == ["joined echo@one"]
    location = harness.presence.location(Address("echo", "one"))
    assert location is not None
    assert str(location) == "127.0.0.1:9"


async def test_an_instance_that_does_not_answer_is_suspected_then_lost(harness: Harness) -> None:
    await harness.after(present(), BREAKS, state="one at 127.0.0.1:9 [SUSPECTED]")
    assert harness.receiver.drain() == ["joined echo@one", "suspected echo@one"]
    await harness.after(present(), state="one at 127.0.0.1:9 [PRESENT]")
    await harness.after(BREAKS, BREAKS, state="- at 127.0.0.1:9 [ABSENT]")
    assert harness.receiver.drain() == ["joined echo@one", "suspected echo@one", "lost echo@one"]
    assert harness.lost == ["echo@one 127.0.0.1:9"]
    assert harness.presence.location(Address("echo", "one")) is None


async def test_an_instance_that_takes_too_long_is_suspected_then_lost() -> None:
    harness = Harness(heartbeat=0.1)
    harness.client.answers.put_nowait(present())
    await harness.presence.watch("echo")
    await eventually(lambda: harness.receiver.calls[-1:] == ["lost echo@one"], "three heartbeats have passed")
    assert harness.receiver.drain() == ["joined echo@one", "suspected echo@one", "lost echo@one"]
    await harness.presence.close()


async def test_a_refused_connection_loses_an_instance_at_once(harness: Harness) -> None:
    await harness.after(present(), REFUSES, state="- at 127.0.0.1:9 [ABSENT]")
    assert harness.receiver.drain() == ["joined echo@one", "lost echo@one"]


async def test_an_instance_that_withdraws_is_followed_until_its_node_is_gone(harness: Harness) -> None:
    await harness.after(present(), without_service(), state="one at 127.0.0.1:9 [WITHDRAWN]")
    await harness.after(without_service(), state="one at 127.0.0.1:9 [WITHDRAWN]")
    assert harness.receiver.drain() == ["joined echo@one", "left echo@one"]
    await harness.after(BREAKS, state="one at 127.0.0.1:9 [SUSPECTED]")
    await harness.after(without_service(), state="one at 127.0.0.1:9 [WITHDRAWN]")
    assert harness.receiver.drain() == ["suspected echo@one"]
    await harness.after(present(version=2), state="one at 127.0.0.1:9 [PRESENT]")
    await harness.after(without_service(), REFUSES, state="- at 127.0.0.1:9 [ABSENT]")
    assert harness.receiver.drain() == ["joined echo@one", "left echo@one", "lost echo@one"]


@pytest.mark.parametrize(
    ("answer", "state"), [(present, "two at 127.0.0.1:9 [PRESENT]"), (without_service, "- at 127.0.0.1:9 [ABSENT]")]
)
async def test_another_node_at_the_location_loses_the_instance(
    harness: Harness, answer: Callable[[str], Answer], state: str
) -> None:
    await harness.after(present(), answer("two"), state=state)
    assert harness.receiver.drain()[:2] == ["joined echo@one", "lost echo@one"]


async def test_this_nodes_own_location_is_ourselves_even_while_it_does_not_answer(harness: Harness) -> None:
    await harness.after(present("ours"), state="- at 127.0.0.1:9 [OURSELVES]")
    await harness.after(REFUSES, without_service("ours"), state="- at 127.0.0.1:9 [OURSELVES]")
    await harness.after(present(), state="one at 127.0.0.1:9 [PRESENT]")
    assert harness.receiver.drain() == ["joined echo@one"]


@pytest.mark.parametrize(
    "answer",
    [
        Untrusted("the certificate is not to be trusted"),
        Answer(500, {fields.NODE: "one"}, b""),
        Answer(200, {}, b""),
        Answer(200, {fields.NODE: "one"}, b"{"),
        Answer(200, {fields.NODE: "two"}, present("one").body),
    ],
)
async def test_an_answer_that_is_not_one_is_logged_once(
    harness: Harness, answer: Answer | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.after(answer, answer, state="- at 127.0.0.1:9 [ABSENT]")
    await eventually(lambda: harness.client.asked == 3, "it was handled")
    assert caplog.text.count("the presence of echo is unknown") == 1


def test_a_peer_refuses_a_transition_that_does_not_exist() -> None:
    peer = Peer(Location(URL("http://127.0.0.1:9"), "echo.test", "echo.test:9"))
    assert repr(peer) == "- at echo.test:9 (127.0.0.1) [UNASKED]"
    assert not peer.asked.is_set()
    with pytest.raises(AssertionError, match="UNASKED cannot become SUSPECTED"):
        peer.enter(PeerState.SUSPECTED)
    peer.enter(PeerState.OURSELVES)
    assert peer.asked.is_set()
    with pytest.raises(AssertionError, match="OURSELVES cannot become WITHDRAWN"):
        peer.enter(PeerState.WITHDRAWN)
    peer.forget()
    assert peer.state is PeerState.OURSELVES
