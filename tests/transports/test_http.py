"""The HTTP transport between two nodes: who is let in, what is refused, and what a caller is told when a peer goes wrong."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from config.provision import provision
from config.settings import Settings
from runtime import (
    ANYONE,
    Clock,
    Context,
    Contract,
    InstanceLost,
    Invalid,
    Node,
    NodeSettings,
    NoInstance,
    Request,
    Service,
    ServiceError,
    Signal,
    StartError,
    Struct,
    Unreachable,
    handles,
    roles,
    subscribes,
)
from runtime.network import Address
from runtime.service.describe import describe
from runtime.sockets import any_free_port
from runtime.testing import RecordingReceiver, eventually
from tests.broker import Broker
from tests.http_peers import HttpPeers, Square
from tests.transports.proxy import Proxy
from transports.http.assertions import Signer
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

echo = Contract("echo")


class Said(Struct):
    """What came, and what came with it."""

    text: str
    caller: str
    key: str
    trace: str


@echo.message
class Say(Request[Said]):
    """Says it back."""

    text: str


@echo.message
class Wait(Request[None]):
    """Never answers."""


@echo.message
class Tell(Request[None]):
    """Much may be told."""

    text: str


@echo.message
class Much(Request[str]):
    """Answers with so many letters."""

    count: int


@echo.message
class Riders(Request[None]):
    """For riders alone."""


@echo.message
class Gone(ServiceError):
    """It was here once."""

    code, status = "gone", 404
    what: str


@echo.message
class Find(Request[None]):
    """Finds nothing."""


class Echo(Service):
    contract = echo

    def __init__(self, name: str = "") -> None:
        self.label = name
        self.running = 0
        self.ran = 0

    @handles(allow=ANYONE, idempotent=True)
    async def say(self, message: Say, ctx: Context) -> Said:
        self.ran += 1
        return Said(message.text, ctx.caller, self.label, ctx.trace.split("-")[1])

    @handles(allow=ANYONE)
    async def wait(self, message: Wait, ctx: Context) -> None:
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    @handles(allow=ANYONE)
    async def tell(self, message: Tell, ctx: Context) -> None: ...

    @handles(allow=ANYONE)
    async def much(self, message: Much, ctx: Context) -> str:
        self.ran += 1
        return "x" * message.count

    @handles(allow=roles("rider"))
    async def riders(self, message: Riders, ctx: Context) -> None: ...

    @handles(allow=ANYONE, raises=(Gone,))
    async def find(self, message: Find, ctx: Context) -> None:
        self.ran += 1
        raise Gone("it")


@echo.message
class Ping(Signal):
    """Something to hear."""


class Hearing(Echo):
    """Hears itself."""

    heard = 0

    @subscribes(broadcast=True)
    async def on_ping(self, signal: Ping, ctx: Context) -> None:
        self.heard += 1


NAMES = ("echo", "asker", "other")


@asynccontextmanager
async def pair(http_peers: HttpPeers, service: Echo, **settings: Any) -> AsyncGenerator[tuple[Node, Context], None]:
    """The service on one node, and a context of `asker` on another."""
    there = HttpTransport(msgspec.structs.replace(http_peers.settings("echo"), **settings))
    async with (
        Node([lambda: service], there, name="there") as node,
        Node([], HttpTransport(http_peers.settings("asker")), name="here") as here,
    ):
        await here.registry.wait_for("echo")
        yield node, here.client("asker", (echo,))


@pytest.fixture
def http_peers() -> HttpPeers:
    return HttpPeers(NAMES, heartbeat=0.5)


# A plain client


async def test_a_plain_client(http_peers: HttpPeers) -> None:
    """As docs/wire.md says it: no part of ours but the assertion."""
    service = Echo("label")
    async with pair(http_peers, service), httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}") as client:
        mine = {"Callboard-Assertion": Signer(http_peers.private["other"], Clock()).assertion("other", "echo")}
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        answer = await client.post(
            "/echo/Say", json={"text": "ü", "later": "a field that is not known yet"}, headers={**mine, "traceparent": trace}
        )
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"text": "ü", "caller": "other", "key": "label", "trace": trace.split("-")[1]}
        assert (await client.post("/echo/Say", content=b"{}", headers={**mine, "Prefer": "respond-async"})).status_code == 202

        async def refused(
            path: str, status: int, code: str, content: bytes = b"{}", method: str = "POST", **headers: str
        ) -> httpx.Response:
            said = await client.request(method, path, content=content, headers={**mine, **headers})
            assert (said.status_code, said.headers["content-type"]) == (status, "application/problem+json"), said.text
            assert (said.json()["code"], said.json()["status"]) == (code, status)
            return said

        assert "text" in (await refused("/echo/Say", 422, "invalid")).text
        await refused("/echo/Say", 400, "malformed", b"{")
        await refused("/echo/Nothing", 404, "unknown-request")
        await refused("/echo/Find", 404, "gone")
        await refused("/echo/Riders", 401, "unauthenticated")
        await refused("/echo/Riders", 401, "unauthenticated", Authorization="Bearer x.y.z")
        await refused("/echo/Riders", 400, "malformed", Authorization="Basic eDp5")
        await refused("/echo/Say", 400, "malformed", b"{}", "POST", **{"Callboard-Budget": "soon"})
        await refused("/echo/Say", 400, "malformed", b"{}", "POST", **{"Callboard-Path": "{"})
        await refused("/echo/Say", 404, "no-instance", b"{}", "POST", **{"Callboard-To": "another-node"})
        await refused("/nobody/Say", 401, "unreachable")
        await refused("/echo/Say", 401, "unreachable", b"{}", "POST", **{"Callboard-Assertion": ""})
        await refused("/echo/Say", 405, "malformed", b"", "GET")
        await refused("/echo", 404, "malformed")
        await refused("/echo/a%0Ab", 404, "malformed")

        async def chunks() -> AsyncGenerator[bytes, None]:
            yield b"{}"

        assert (await client.post("/echo/Say", content=chunks(), headers=mine)).status_code == 411
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/echo/Wait", content=b"{}", headers=mine, timeout=0.3)
        await eventually(lambda: service.running == 0, "who hangs up cancels")


async def test_two_who_use_the_same_ids_are_not_mixed_up(http_peers: HttpPeers) -> None:
    service = Echo()
    async with (
        pair(http_peers, service),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", timeout=5) as client,
    ):

        def head(name: str, **more: str) -> dict[str, str]:
            return {
                "Callboard-Assertion": Signer(http_peers.private[name], Clock()).assertion(name, "echo"),
                "Callboard-Id": "1",
                **more,
            }

        waiting = asyncio.create_task(client.post("/echo/Wait", content=b"{}", headers=head("other")))
        named = asyncio.create_task(client.post("/echo/Wait", content=b"{}", headers=head("other", **{"Callboard-Node": "n"})))
        await eventually(lambda: service.running == 2, "both run")
        for name, more in (("other", {}), ("asker", {}), ("asker", {"Callboard-Node": "n"})):
            assert (await client.post("/echo/Say", content=b'{"text":"x"}', headers=head(name, **more))).status_code == 200
        twice = await client.post("/echo/Say", content=b'{"text":"x"}', headers=head("other", **{"Callboard-Node": "n"}))
        assert twice.status_code == 409, "one and the same request is not run a second time"
        assert service.running == 2
        for task in (waiting, named):
            task.cancel()
        await asyncio.gather(waiting, named, return_exceptions=True)
        await eventually(lambda: service.running == 0, "each hangs up for itself")


# What a caller is told


@asynccontextmanager
async def in_its_place(port: int, answer: Callable[[bytes], Awaitable[bytes]]) -> AsyncGenerator[None, None]:
    """Something else that listens where the service should: it answers each request's head, and hangs up."""
    busy: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            writer.write(await answer(await reader.readuntil(b"\r\n\r\n")))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            busy.discard(task)

    server = await asyncio.start_server(play, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await server.wait_closed()


def _presence(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nCallboard-Node: fake\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def test_texts_that_headers_do_not_take(http_peers: HttpPeers) -> None:
    async with pair(http_peers, Echo()) as (_, ctx):
        for key in (" a", "a ", "ü", "100 %", "a\r\nX: y", "\0", "%20"):
            assert (await ctx.request(Say(key), key=key)).text == key
        with pytest.raises(Invalid):
            await ctx.request(Say("x"), key="\ud800")


async def test_what_is_too_large(http_peers: HttpPeers) -> None:
    service = Echo()
    async with pair(http_peers, service, max_body=100_000) as (_, ctx):
        for size in (150_000, 900_000, 3_000_000):
            with pytest.raises(ServiceError) as refused:
                await ctx.request(Say("x" * size))
            assert not refused.value.maybe_delivered, "nobody was asked"
        with pytest.raises(ServiceError) as failed:
            await ctx.request(Much(150_000))
        assert failed.value.code == "internal"
        assert (await ctx.request(Say("small"))).text == "small"
    small = msgspec.structs.replace(http_peers.settings("asker"), max_body=100_000)
    async with Node([lambda: service], HttpTransport(http_peers.settings("echo"))), Node([], HttpTransport(small)) as here:
        await here.registry.wait_for("echo")
        with pytest.raises(InstanceLost):
            await here.client("asker", (echo,)).request(Much(150_000))
        assert service.ran >= 2, "it has run: that must not be called not delivered"


@pytest.mark.parametrize("answer", [
    b"", b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\nbad", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", b"garbage\r\n\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 503 No\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}",
])  # fmt: skip
async def test_an_answer_that_is_none_may_have_been_delivered(http_peers: HttpPeers, answer: bytes) -> None:
    """Something else answers in the service's place: nobody can know what it has done."""
    manifest = describe(Echo, Address("echo", "fake"), "1")
    news = msgspec.json.encode({"version": 1, "heads": 0, "manifest": manifest})

    async def play(head: bytes) -> bytes:
        if not head.startswith(b"GET"):
            return answer
        if b"version=1" in head:
            await asyncio.Event().wait()
        return _presence(news)

    there = in_its_place(http_peers.ports["echo"], play)
    async with there, Node([], HttpTransport(http_peers.settings("asker")), name="here") as here:
        await here.registry.wait_for("echo")
        with pytest.raises(ServiceError) as lost:
            await here.client("asker", (echo,)).request(Wait(), timeout=5)
        assert lost.value.maybe_delivered, lost.value


async def test_garbage_instead_of_presence_does_not_end_the_watching(http_peers: HttpPeers) -> None:
    answers = [
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"version":1,"heads":0}',
        b'{"version":1,"heads":0,"load":-1}',
        b'{"version":1,"heads":0,"load":1' + b"0" * 400 + b"}",
        b"x" * 100,
    ]
    asked = 0

    async def play(head: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return _presence(answers[(asked - 1) % len(answers)])

    async with Node([], HttpTransport(http_peers.settings("asker"))) as here:
        async with in_its_place(http_peers.ports["echo"], play):
            with pytest.raises(NoInstance):
                await here.client("asker", (echo,)).request(Say("?"), timeout=1)
            await eventually(lambda: asked >= len(answers), "each is looked at")
        async with Node([Echo], HttpTransport(http_peers.settings("echo"))):
            await here.registry.wait_for("echo")
            assert (await here.client("asker", (echo,)).request(Say("x"))).text == "x"


async def test_a_peer_that_falls_silent(http_peers: HttpPeers) -> None:
    """No FIN, no reset: as when a container is paused, or its host is gone."""
    service = Echo()
    async with Proxy(http_peers.ports["echo"]) as proxy:
        peers = (f"echo=http://127.0.0.1:{proxy.port}",)
        mine = msgspec.structs.replace(http_peers.settings("asker"), peers=peers)
        settings = NodeSettings(request_timeout=30)
        async with (
            Node([lambda: service], HttpTransport(http_peers.settings("echo"))),
            Node([], HttpTransport(mine), settings=settings) as here,
        ):
            await here.registry.wait_for("echo")
            ctx = here.client("asker", (echo,))
            waiting = asyncio.create_task(ctx.request(Wait()))
            await eventually(lambda: service.running == 1, "it runs")
            proxy.freeze()
            with pytest.raises(InstanceLost):
                await asyncio.wait_for(waiting, 10)
            await eventually(lambda: not here.registry.members("echo"), "it is gone")
            proxy.thaw()
            await eventually(lambda: here.registry.members("echo"), "it is back")
            assert (await ctx.request(Say("again"))).text == "again"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux ends such connections by itself")
async def test_a_connection_that_takes_nothing_any_more_is_ended(http_peers: HttpPeers) -> None:
    """As when the network is cut, far before the deadline, though who is there can still be seen."""
    manifest = describe(Echo, Address("echo", "fake"), "1")
    news = msgspec.json.encode({"version": 1, "heads": 0, "manifest": manifest})

    async def play(head: bytes) -> bytes:
        if not head.startswith(b"GET"):
            await asyncio.Event().wait()
        if b"version=1" in head:
            await asyncio.sleep(0.1)  # as long as a long poll is
        return _presence(news)

    mine = msgspec.structs.replace(http_peers.settings("asker"), heartbeat=1)
    there = in_its_place(http_peers.ports["echo"], play)
    async with there, Node([], HttpTransport(mine), settings=NodeSettings(request_timeout=600)) as here:
        await here.registry.wait_for("echo")
        with pytest.raises(InstanceLost):
            await asyncio.wait_for(here.client("asker", (echo,)).request(Tell("x" * 15_000_000)), 30)


async def test_a_peer_that_is_started_anew_at_the_same_place(http_peers: HttpPeers) -> None:
    async with Node([], HttpTransport(http_peers.settings("asker"))) as here:
        ctx = here.client("asker", (echo,))
        for label in ("one", "two", "three"):
            async with Node([lambda label=label: Echo(label)], HttpTransport(http_peers.settings("echo"))):  # type: ignore[misc]  # a lambda's default
                await here.registry.wait_for("echo")
                assert (await ctx.request(Say("?"))).key == label
            await eventually(lambda: not here.registry.members("echo"), "it has left")


async def test_two_ways_to_one_node(http_peers: HttpPeers) -> None:
    service = Echo()
    async with Proxy(http_peers.ports["echo"]) as proxy:
        mine = msgspec.structs.replace(
            http_peers.settings("asker"), peers=(*http_peers.settings("asker").peers, f"echo=http://127.0.0.1:{proxy.port}")
        )
        async with Node([lambda: service], HttpTransport(http_peers.settings("echo"))), Node([], HttpTransport(mine)) as here:
            await here.registry.wait_for("echo")
            ctx = here.client("asker", (echo,))
            assert len(here.registry.members("echo")) == 1
            for _ in range(3):
                await proxy.refuse()
                proxy.cut()
                assert (await ctx.request(Say("x"), timeout=5)).text == "x"
                await proxy.listen()
            assert len(here.registry.members("echo")) == 1
            presence = here.environment.transport._opened.presence  # type: ignore[attr-defined]  # which way is taken shows nowhere
            await eventually(lambda: all(peer.node for peer in presence._peers["echo"].values()), "both ways are open")
            (address,) = presence._where
            presence._where[address] = next(place for place in presence._peers["echo"] if place.base.port == proxy.port)
            hanging = asyncio.create_task(ctx.request(Wait(), timeout=20))
            await eventually(lambda: service.running == 1, "it runs, asked by way of the proxy")
            proxy.freeze()
            with pytest.raises(InstanceLost):
                await asyncio.wait_for(hanging, 10)
            assert (await ctx.request(Say("x"), timeout=1)).text == "x", "the other way is there"
            proxy.thaw()


async def test_a_name_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One URL, two instances: as with a service that is scaled in compose, or a headless one in Kubernetes."""
    import socket

    square, port = Square(NAMES, size=1), any_free_port()
    real = socket.getaddrinfo
    here_too = ["127.0.0.1"]

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            [entry for ip in here_too for entry in real(ip, *args, **kwargs)]
            if host == "echo.test"
            else real(host, *args, **kwargs)
        )

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    settings = [msgspec.structs.replace(square.settings(), host=ip, port=port, peers=()) for ip in ("127.0.0.1", "127.0.0.2")]
    mine = msgspec.structs.replace(square.settings(), port=any_free_port(), peers=(f"echo=http://echo.test:{port}",))
    async with Node([partial(Echo, "one")], HttpTransport(settings[0])), Node([], HttpTransport(mine)) as here:
        await here.registry.wait_for("echo")
        async with Node([partial(Echo, "two")], HttpTransport(settings[1])):
            here_too.append("127.0.0.2")
            here.environment.transport._opened.presence._again["echo"].set()  # type: ignore[attr-defined]  # else half a minute
            await eventually(lambda: len(here.registry.members("echo")) == 2, "both are seen")
            ctx = here.client("asker", (echo,))
            assert {(await ctx.request(Say("?"))).key for _ in range(40)} == {"one", "two"}
        assert {(await ctx.request(Say("?"))).key for _ in range(10)} == {"one"}


async def test_tls(http_peers: HttpPeers, tmp_path: Path) -> None:
    provision(tmp_path / "secrets", Settings())
    files = tmp_path / "secrets"
    theirs = {
        "certificate_file": str(files / "wallet" / "certificate.pem"),
        "private_key_file": str(files / "wallet" / "private-key.pem"),
    }
    peers = (f"echo=https://localhost:{http_peers.ports['echo']}",)
    there = msgspec.structs.replace(http_peers.settings("echo"), **theirs)
    mine = msgspec.structs.replace(http_peers.settings("asker"), peers=peers, ca_file=str(files / "shared" / "ca.pem"))
    async with Node([Echo], HttpTransport(there)):
        async with Node([], HttpTransport(mine)) as here:
            await here.registry.wait_for("echo")
            assert (await here.client("asker", (echo,)).request(Say("x"))).text == "x"
        for wrong in (
            msgspec.structs.replace(mine, ca_file=None),
            msgspec.structs.replace(mine, peers=(f"echo=https://127.0.0.1:{http_peers.ports['echo']}",)),
        ):
            async with Node([], HttpTransport(wrong)) as here:
                with pytest.raises((NoInstance, Unreachable)):
                    await here.client("asker", (echo,)).request(Say("x"), timeout=2)
    with pytest.raises(StartError, match="go together"):
        await HttpTransport(msgspec.structs.replace(there, private_key_file=None)).open("x", RecordingReceiver())
    with pytest.raises(StartError, match="ca_file"):
        await HttpTransport(msgspec.structs.replace(mine, ca_file="/nowhere")).open("x", RecordingReceiver())


async def test_nothing_is_left_of_calls_that_were_given_up(http_peers: HttpPeers) -> None:
    service = Echo()
    async with pair(http_peers, service) as (node, ctx):
        for _ in range(5):
            tasks = [asyncio.create_task(ctx.request(Wait(), timeout=0.3 if number % 2 else None)) for number in range(60)]
            await asyncio.sleep(0)
            await eventually(lambda: service.running > 20, "some run")
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: service.running == 0, "nothing runs on")
        request_handler = node.environment.transport._opened.request_handler  # type: ignore[attr-defined]  # what is left over shows nowhere
        await eventually(lambda: not request_handler._answering and not node.inbound._running, "nothing waits on")
        assert (await ctx.request(Say("x"))).text == "x"


async def test_a_drained_instance_is_not_asked_again(http_peers: HttpPeers) -> None:
    service = Echo()
    async with pair(http_peers, service) as (node, ctx):
        begun = time.monotonic()
        task = asyncio.create_task(ctx.request(Wait()))
        await eventually(lambda: service.running == 1, "it runs")
        stopping = asyncio.create_task(node.stop())
        with pytest.raises(ServiceError) as refused:
            while time.monotonic() - begun < 3:
                await ctx.request(Say("x"))
        assert refused.value.status == 503
        assert not refused.value.maybe_delivered
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stopping


async def test_an_answer_that_never_comes_is_one_all_the_same(http_peers: HttpPeers) -> None:
    """Whatever a node forgets, the one who asks hears that it may have run, soon after its own deadline."""
    transport = HttpTransport(http_peers.settings("echo"))
    await transport.open("there", RecordingReceiver())
    await transport.listen("echo")
    mine = {
        "Callboard-Assertion": Signer(http_peers.private["other"], Clock()).assertion("other", "echo"),
        "Callboard-Budget": "100",
    }
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", timeout=10) as client:
            answer = await client.post("/echo/Say", content=b"{}", headers=mine)
            assert (answer.status_code, answer.json()["code"]) == (502, "instance-lost")
    finally:
        await transport.close()


async def test_without_its_broker_a_node_answers_and_its_signals_come_with_it(http_peers: HttpPeers, tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    service = Hearing()

    def transport(name: str) -> HttpMqttTransport:
        return HttpMqttTransport(HttpTransport(http_peers.settings(name)), MqttTransport(MqttSettings(url=broker.url)))

    async with Node([lambda: service], transport("echo")) as there, Node([], transport("asker"), name="here") as here:
        await here.registry.wait_for("echo")
        assert (await here.client("asker", (echo,)).request(Say("x"))).text == "x"
        assert there.waits_for() == []
        ctx = there.client("echo", ())
        await ctx.publish(Ping())
        async with broker:

            async def heard() -> bool:
                await ctx.publish(Ping())
                return service.heard > 0

            await eventually(heard, "signals come")
    wrong = MqttSettings(url="mqtts://127.0.0.1:1", ca_file="/nowhere")
    with pytest.raises(StartError, match="ca_file"):
        await HttpMqttTransport(HttpTransport(http_peers.settings("echo")), MqttTransport(wrong)).open("x", RecordingReceiver())


async def test_a_node_with_anothers_key_does_not_start(http_peers: HttpPeers) -> None:
    wrong = msgspec.structs.replace(http_peers.settings("echo"), key=http_peers.private["other"])
    with pytest.raises(StartError, match="has no key of echo, only of other"):
        async with Node([Echo], HttpTransport(wrong)):
            pass
