"""The conformance kit: what every transport must do, as its docstrings say.

Whoever writes a transport runs it in a test::

    async def test_conformance() -> None:
        await check_transport(lambda: MyTransport(...))

The factory makes transports that can reach each other; each becomes a node of its own.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from runtime.contract.access import ANYONE, SERVICES
from runtime.contract.errors import (
    CallboardError,
    DeadlineExceeded,
    InstanceLost,
    NoInstance,
    NotDelivered,
    Overloaded,
    RemoteError,
    ServiceError,
)
from runtime.contract.messages import Contract, Request, Signal, Struct
from runtime.execution.environment import NodeSettings
from runtime.network.envelope import Address, Envelope, Head, Topic
from runtime.network.manifest import Manifest
from runtime.network.transport import PeerUnreachable, Transport, TransportError
from runtime.node.node import Node
from runtime.service.context import Context
from runtime.service.handlers import handles, subscribes
from runtime.service.service import Service

TransportFactory = Callable[[], Transport]
Crash = Callable[[Transport], Awaitable[None]]

WAIT = 10.0
"""Seconds after which a case that waits has failed."""


class ConformanceError(CallboardError):
    """A transport does not do what it must. The message names the case."""


kit = Contract("conformance")


class Echoed(Struct):
    """What came, and from whom."""

    text: str
    caller: str
    node: str


@kit.message
class Echo(Request[Echoed]):
    """Says it back."""

    text: str


@kit.message
class Hang(Request[None]):
    """Never answers; its end is recorded under the name."""

    name: str


@kit.message
class Tick(Signal):
    """To one instance of each subscribing service."""

    number: int


@kit.message
class Toll(Signal, kw_only=True):
    """To every instance."""

    number: int


@kit.message
class Refused(ServiceError):
    """An error with fields."""

    code, status = "refused", 409
    reason: str


@kit.message
class Refuse(Request[None]):
    """Fails."""

    reason: str


class Peer(Service):
    """The service that the cases talk to. What happened to it stands in its lists."""

    contract = kit
    concurrency = 2000

    def __init__(self, node: str = "") -> None:
        self.place = node
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.ticks: list[int] = []
        self.tolls: list[int] = []

    @handles(allow=ANYONE, idempotent=True)
    async def echo(self, message: Echo, ctx: Context) -> Echoed:
        return Echoed(message.text, ctx.caller, self.place)

    @handles(allow=SERVICES)
    async def hang(self, message: Hang, ctx: Context) -> None:
        self.started.append(message.name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.name)
            raise

    @handles(allow=ANYONE, raises=(Refused,))
    async def refuse(self, message: Refuse, ctx: Context) -> None:
        raise Refused(message.reason)

    @subscribes
    async def on_tick(self, signal: Tick, ctx: Context) -> None:
        self.ticks.append(signal.number)

    @subscribes(broadcast=True)
    async def on_toll(self, signal: Toll, ctx: Context) -> None:
        self.tolls.append(signal.number)


class Narrow(Peer):
    """The same with room for one, and one who waits."""

    concurrency = 1
    capacity = 1


class Listener:
    """A bare receiver, below any node: it writes down what its transport tells it."""

    def __init__(self) -> None:
        self.envelopes: list[tuple[Envelope, str]] = []
        self.members: dict[Address, Manifest] = {}
        self.loads: dict[Address, int] = {}
        self.departed: list[tuple[Address, bool]] = []
        self.silent: list[Address] = []
        self.cuts = 0
        self.garbage = 0
        self.failure: TransportError | None = None

    def load(self, service: str) -> int:
        return 7

    def receive(self, envelope: Envelope, to: str) -> None:
        self.envelopes.append((envelope, to))

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self.members[manifest.address] = manifest
        self.loads[manifest.address] = load

    def suspected(self, address: Address) -> None:
        self.silent.append(address)

    def left(self, address: Address, *, lost: bool) -> None:
        self.members.pop(address, None)
        self.departed.append((address, lost))

    def cut(self) -> None:
        self.cuts += 1

    def unreadable(self) -> None:
        self.garbage += 1

    def failed(self, error: TransportError) -> None:
        self.failure = error


async def eventually(condition: Callable[[], Any], what: str, seconds: float = WAIT) -> None:
    """Waits until a condition, or what it awaits, holds.

    Raises:
        ConformanceError: it did not within so many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise ConformanceError(f"did not come true: {what}") from None


def expect(condition: bool, what: str) -> None:
    """Raises `ConformanceError` unless the condition holds."""
    if not condition:
        raise ConformanceError(f"is not so: {what}")


class Kit:
    """The cases, each a method whose name begins with `case_`.

    Args:
        factory: makes a transport; all that it makes reach each other.
        crash: ends a transport without a word, as a killed process would; None leaves those cases out.
    """

    def __init__(self, factory: TransportFactory, crash: Crash | None = None) -> None:
        self.factory = factory
        self.crash = crash
        self.capabilities = factory().capabilities

    @classmethod
    def cases(cls) -> list[str]:
        """The names of all cases."""
        return sorted(name.removeprefix("case_") for name in dir(cls) if name.startswith("case_"))

    async def run(self, case: str) -> None:
        """Runs one case.

        Raises:
            ConformanceError: the transport fails it.
        """
        try:
            async with asyncio.timeout(WAIT * 3):
                await getattr(self, f"case_{case}")()
        except ConformanceError as error:
            raise ConformanceError(f"{case}: {error}") from error
        except TimeoutError:
            raise ConformanceError(f"{case}: hangs") from None

    @asynccontextmanager
    async def nodes(
        self, *names: str, service: type[Peer] = Peer, **settings: Any
    ) -> AsyncGenerator[list[tuple[Node, Peer]], None]:
        """Nodes with a `Peer` each, that see each other."""
        opened: list[tuple[Node, Peer]] = []
        try:
            for name in names:
                peer = service(name)
                node = Node([partial(_same, peer)], self.factory(), name=name, settings=NodeSettings(**settings))
                await node.__aenter__()
                opened.append((node, peer))
            for node, _ in opened:
                await eventually(partial(_sees, node, len(names)), "every node sees every other")
            yield opened
        finally:
            for node, _ in reversed(opened):
                await node.stop()

    @asynccontextmanager
    async def asker(self, *, see: int = 1, **settings: Any) -> AsyncGenerator[tuple[Node, Context], None]:
        """A node without the service, and a context of the service `asker` on it."""
        async with Node([], self.factory(), name="asker", settings=NodeSettings(**settings)) as node:
            await eventually(lambda: len(node.registry.members("conformance")) >= see, "the asker sees the peers")
            yield node, node.client("asker", (kit,))

    # Requests

    async def case_request_and_reply(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo("hello"))).text == "hello", "the reply has what was sent")

    async def case_caller_is_known(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo("?"))).caller == "asker", "the callee knows which service calls")

    async def case_errors_keep_class_and_fields(self) -> None:
        async with self.nodes("one"), self.asker() as (node, ctx):
            try:
                await ctx.request(Refuse("because"))
            except Refused as error:
                expect(error.reason == "because", "the error has its fields")
            else:
                raise ConformanceError("no error came")
            stranger = node.client("stranger", (kit,))
            stranger.host.definition = Stranger.definition  # type: ignore[attr-defined]
            try:
                await stranger.request(Refuse("because"))
            except RemoteError as error:
                expect(
                    (error.status, error.code, error.fields) == (409, "refused", {"reason": "because"}),
                    "a stranger sees all of it",
                )
            else:
                raise ConformanceError("no error came")

    async def case_one_mebibyte(self) -> None:
        text = "ü" * (512 * 1024)
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo(text))).text == text, "a MiB goes both ways unharmed")

    async def case_a_thousand_in_flight(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            replies = await asyncio.gather(*(ctx.request(Echo(str(number))) for number in range(1000)))
            expect([reply.text for reply in replies] == [str(number) for number in range(1000)], "each gets its own reply")

    async def case_replicas_share_requests(self) -> None:
        async with self.nodes("one", "two"), self.asker(see=2) as (_, ctx):
            replies = await asyncio.gather(*(ctx.request(Echo("?")) for _ in range(100)))
            expect({reply.node for reply in replies} == {"one", "two"}, "both replicas answer some")

    async def case_nobody_there(self) -> None:
        async with self.asker(see=0) as (_, ctx):
            try:
                await ctx.request(Echo("?"), timeout=1)
            except NoInstance:
                return
        raise ConformanceError("asking nobody gave no error")

    async def case_deadline(self) -> None:
        async with self.nodes("one") as [(_, peer)], self.asker() as (_, ctx):
            try:
                await ctx.request(Hang("late"), timeout=0.1)
            except DeadlineExceeded:
                pass
            else:
                raise ConformanceError("no error at the deadline")
            await eventually(lambda: peer.cancelled == ["late"], "the callee's work was cancelled")

    async def case_cancellation_reaches_the_callee(self) -> None:
        async with self.nodes("one", request_timeout=120) as [(_, peer)], self.asker(request_timeout=120) as (_, ctx):
            task = asyncio.create_task(ctx.request(Hang("cancelled")))
            await eventually(lambda: peer.started == ["cancelled"], "the request arrived")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await eventually(lambda: peer.cancelled == ["cancelled"], "the callee's work was cancelled")

    async def case_a_cancel_that_overtakes_its_request(self) -> None:
        async with self.nodes("one") as [(node, peer)], self.asker() as (asker, ctx):
            to = Address("conformance", node.id)
            back = Address("asker", asker.id)
            transport = asker.environment.transport
            await transport.unicast(to, Envelope("cancel", "early", "conformance.Hang", reply_to=back), "asker")
            body: Any = Hang("early") if transport.zero_copy else b'{"name":"early"}'
            await transport.unicast(to, Envelope("request", "early", "conformance.Hang", body, reply_to=back), "asker")
            await ctx.request(Echo("a later one has been through"))
            expect(peer.started == [], "a request whose cancel came first does not run")

    async def case_back_pressure(self) -> None:
        async with self.nodes("one", service=Narrow) as [(_, peer)], self.asker() as (_, ctx):
            tasks = [asyncio.create_task(ctx.request(Hang(str(number)))) for number in range(2)]
            await eventually(lambda: peer.started == ["0"], "the first runs")
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(WAIT):
                    while True:
                        await ctx.request(Echo("one too many"), timeout=0.2)
            except Overloaded:
                pass
            except DeadlineExceeded:
                await eventually(lambda: False, "a full mailbox refuses at once")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Coming and going

    async def case_join_and_leave(self) -> None:
        async with self.asker(see=0) as (asker, _):
            async with self.nodes("one"):
                await eventually(lambda: len(asker.registry.members("conformance")) == 1, "it is seen to join")
            await eventually(lambda: not asker.registry.members("conformance"), "it is seen to leave")

    async def case_only_those_watched_are_told_of(self) -> None:
        transport, other, listener = self.factory(), self.factory(), Listener()
        await transport.open("watcher", listener)
        await other.open("other", Listener())
        try:
            await other.announce(Manifest("apple", "other", "1"))
            await other.announce(Manifest("pear", "other", "2"))
            await transport.watch("apple")
            expect(set(listener.members) == {Address("apple", "other")}, "who is there is told before `watch` returns")
            expect(listener.loads[Address("apple", "other")] == 7, "and how much it has to do")
            await other.announce(Manifest("pear", "other", "2", version="1"))
            await other.announce(Manifest("apple", "other", "1", version="1"))
            await eventually(lambda: listener.members[Address("apple", "other")].version == "1", "what changes is told")
            expect(set(listener.members) == {Address("apple", "other")}, "of nobody else")
            await transport.watch(None)
            expect(Address("pear", "other") in listener.members, "until all are watched")
        finally:
            await other.close()
            await transport.close()

    async def case_a_crash_is_seen_and_fails_its_calls(self) -> None:
        if self.crash is None:
            return
        async with self.nodes("one", drain_timeout=0.1) as [(node, peer)], self.asker() as (asker, ctx):
            task = asyncio.create_task(ctx.request(Hang("lost")))
            await eventually(lambda: peer.started == ["lost"], "the request arrived")
            await self.crash(node.environment.transport)
            try:
                async with asyncio.timeout(WAIT):
                    await task
            except InstanceLost:
                pass
            except ServiceError as error:
                raise ConformanceError(f"expected InstanceLost, got {error!r}") from error
            await eventually(lambda: not asker.registry.members("conformance"), "it is gone from the registry")

    async def case_idempotent_requests_move_to_another_instance(self) -> None:
        if self.crash is None:
            return
        async with self.nodes("one", "two") as [(node, _), _], self.asker(see=2) as (_, ctx):
            await self.crash(node.environment.transport)
            replies = await asyncio.gather(*(ctx.request(Echo(str(number))) for number in range(20)))
            expect({reply.node for reply in replies} == {"two"}, "the other replica answers all of them")

    async def case_unicast_to_nobody(self) -> None:
        transport = self.factory()
        await transport.open("lonely", Listener())
        try:
            await transport.unicast(Address("conformance", "nobody"), Envelope("request", "1", "conformance.Echo"), "lonely")
        except PeerUnreachable:
            return
        finally:
            await transport.close()
        raise ConformanceError("an envelope to nobody was taken")

    async def case_close_while_busy(self) -> None:
        async with self.asker(see=0) as (asker, ctx):
            async with self.nodes("one", drain_timeout=0.1) as [(_, peer)]:
                await eventually(lambda: len(asker.registry.members("conformance")) == 1, "it is seen to join")
                tasks = [asyncio.create_task(ctx.request(Hang(str(number)))) for number in range(10)]
                await eventually(lambda: len(peer.started) == 10, "all of them run")
            done = await asyncio.gather(*tasks, return_exceptions=True)
            expect(all(isinstance(error, ServiceError) for error in done), f"each call ends in an error of ours: {done[0]!r}")
            expect(len(peer.cancelled) == 10, "what did not finish was cancelled")

    async def case_drain_finishes_what_runs(self) -> None:
        async with self.asker(see=0) as (asker, ctx):
            async with self.nodes("one"):
                await eventually(lambda: len(asker.registry.members("conformance")) == 1, "it is seen to join")
                tasks = [asyncio.create_task(ctx.request(Echo(str(number)))) for number in range(100)]
                await asyncio.sleep(0)
            done = await asyncio.gather(*tasks, return_exceptions=True)
            wrong = [answer for answer in done if not isinstance(answer, Echoed | NotDelivered)]
            expect(not wrong, f"each call is answered, or was not delivered: {wrong[:1]!r}")

    # Ordering and multicasts

    async def case_order(self) -> None:
        if not self.capabilities.ordered:
            return
        sender, receiver = self.factory(), self.factory()
        listener = Listener()
        await sender.open("sender", Listener())
        await receiver.open("receiver", listener)
        try:
            await receiver.listen("conformance")
            for number in range(200):
                await sender.unicast(
                    Address("conformance", "receiver"), Envelope("request", str(number), "conformance.Echo"), "sender"
                )
            await eventually(lambda: len(listener.envelopes) == 200, "all arrive")
            expect([envelope.id for envelope, _ in listener.envelopes] == [str(number) for number in range(200)], "in order")
            expect({envelope.caller for envelope, _ in listener.envelopes} == {"sender"}, "from the sender")
        finally:
            await sender.close()
            await receiver.close()

    async def case_anycast(self) -> None:
        receivers: list[tuple[Transport, Listener]] = []
        sender = self.factory()
        await sender.open("sender", Listener())
        try:
            for name in ("one", "two"):
                receivers.append((self.factory(), Listener()))
                await receivers[-1][0].open(name, receivers[-1][1])
                await receivers[-1][0].listen("conformance")
            for number in range(20):
                await sender.anycast("conformance", Envelope("request", str(number), "conformance.Echo"), "sender")
            seen = [listener.envelopes for _, listener in receivers]
            await eventually(lambda: sum(map(len, seen)) == 20, "all arrive")
            expect(all(seen), "each listener gets some")
        finally:
            for transport in (sender, *(transport for transport, _ in receivers)):
                await transport.close()

    async def case_a_signal_reaches_one_of_each_group(self) -> None:
        if not self.capabilities.signals:
            return
        async with self.nodes("one", "two") as [(node, first), (_, second)]:
            ctx = node.client("conformance", ())
            for number in range(50):
                await ctx.publish(Tick(number))
            await eventually(lambda: len(first.ticks) + len(second.ticks) >= 50, "all arrive")
            expect(sorted(first.ticks + second.ticks) == list(range(50)), "each once")

    async def case_a_broadcast_reaches_all(self) -> None:
        if not self.capabilities.signals:
            return
        async with self.nodes("one", "two") as [(node, first), (_, second)]:
            ctx = node.client("conformance", ())
            for number in range(50):
                await ctx.publish(Toll(number=number))
            await eventually(lambda: len(first.tolls) == len(second.tolls) == 50, "all arrive at both")
            if self.capabilities.ordered:
                expect(first.tolls == second.tolls == list(range(50)), "in order")

    async def case_a_key_narrows_a_topic(self) -> None:
        if not self.capabilities.signals:
            return
        sender, receiver = self.factory(), self.factory()
        listener = Listener()
        await sender.open("sender", Listener())
        await receiver.open("receiver", listener)
        try:
            await receiver.subscribe(Topic("signal", "sender", "Ping", "mine"), "one", broadcast=False)
            await receiver.subscribe(Topic("signal", "sender", "Ping"), "all", broadcast=False)
            for key in ("mine", "yours"):
                await sender.multicast(Topic("signal", "sender", "Ping", key), Envelope("signal", key, "sender.Ping"), "sender")
            await eventually(lambda: len(listener.envelopes) >= 3, "three arrive")
            expect(
                sorted((envelope.id, to) for envelope, to in listener.envelopes)
                == [("mine", "all"), ("mine", "one"), ("yours", "all")],
                "each to whom it concerns",
            )
        finally:
            await sender.close()
            await receiver.close()

    async def case_heads_reach_every_subscriber(self) -> None:
        sender, receiver = self.factory(), self.factory()
        listener, neighbour = Listener(), Listener()
        await sender.open("sender", neighbour)
        await receiver.open("receiver", listener)
        heads: list[Head] = []
        try:
            await sender.announce(Manifest("apple", "sender", "1"))
            await receiver.watch("apple")
            for service in ("one", "two"):
                await receiver.subscribe(Topic("stream", "apple"), service, broadcast=True)
            await sender.subscribe(Topic("stream", "apple"), "neighbour", broadcast=True)
            for number in range(1, 4):
                body: Any = Head("epoch", number) if sender.zero_copy else msgspec.json.encode(Head("epoch", number))
                await sender.multicast(Topic("stream", "apple"), Envelope("head", "", "apple.head", body), "apple")

            def last() -> bool:
                heads[:] = [_head(envelope) for envelope, to in listener.envelopes if to == "two" and envelope.caller == "apple"]
                return bool(heads) and heads[-1].seq == 3

            await eventually(last, "the last head arrives; those before may be left out")
            expect({to for _, to in listener.envelopes} == {"one", "two"}, "at each subscriber")
            await eventually(lambda: "neighbour" in {to for _, to in neighbour.envelopes}, "and on the node that tells it")
            await receiver.unsubscribe(Topic("stream", "apple"), "one")
        finally:
            await receiver.close()
            await sender.close()

    async def case_unsubscribing(self) -> None:
        if not self.capabilities.signals:
            return
        sender, receiver = self.factory(), self.factory()
        listener = Listener()
        await sender.open("sender", Listener())
        await receiver.open("receiver", listener)
        mine, all_keys = Topic("signal", "sender", "Ping", "mine"), Topic("signal", "sender", "Ping")
        try:
            await receiver.unsubscribe(mine, "one")
            for topic, service in ((mine, "one"), (all_keys, "two"), (all_keys, "last")):
                await receiver.subscribe(topic, service, broadcast=True)
            await sender.multicast(mine, Envelope("signal", "first", "sender.Ping"), "sender")
            await eventually(lambda: len(listener.envelopes) >= 3, "all three hear it")
            await receiver.unsubscribe(mine, "one")
            await receiver.unsubscribe(all_keys, "two")
            await sender.multicast(mine, Envelope("signal", "second", "sender.Ping"), "sender")
            await eventually(lambda: len(listener.envelopes) >= 4, "who has stayed hears it")
            expect([to for envelope, to in listener.envelopes if envelope.id == "second"] == ["last"], "and nobody else")
        finally:
            await sender.close()
            await receiver.close()


def _same(peer: Peer) -> Peer:
    return peer


def _sees(node: Node, count: int) -> bool:
    return len(node.registry.members("conformance")) == count


def _head(envelope: Envelope) -> Head:
    return envelope.body if isinstance(envelope.body, Head) else msgspec.json.decode(envelope.body, type=Head)


class Stranger(Service):
    """A service that does not import the kit's errors."""

    contract = Contract("stranger")


async def check_transport(factory: TransportFactory, crash: Crash | None = None) -> None:
    """Runs every case.

    Args:
        factory: makes a transport; all that it makes reach each other.
        crash: ends a transport without a word, as a killed process would.

    Raises:
        ConformanceError: the first case that fails, and what was not so.
    """
    for case in Kit.cases():
        await Kit(factory, crash).run(case)
