"""Presence over HTTP: peers that fall silent, restart, send garbage, or have several addresses."""

import asyncio
import socket
from functools import partial
from typing import Any

import msgspec
import pytest

from runtime import InstanceLost, Node, NodeSettings, NoInstance
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.http_peers import HttpPeers, InterchangeablePeers
from tests.transports.http.echo import NAMES, Echo, Say, Wait, echo, fake_server, presence_answer
from tests.transports.proxy import Proxy
from transports.http.transport import HttpTransport


async def test_a_node_keeps_watching_a_peer_that_answers_with_garbage(http_peers: HttpPeers) -> None:
    answers = [
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"version":1,"heads":0}',
        b'{"version":1,"heads":0,"load":-1}',
        b'{"version":1,"heads":0,"load":1' + b"0" * 400 + b"}",
        b"x" * 100,
    ]
    requests = 0

    async def answer_head(head: bytes) -> bytes:
        nonlocal requests
        requests += 1
        return presence_answer(answers[(requests - 1) % len(answers)])

    async with Node([], HttpTransport(http_peers.settings("client"))) as client_node:
        async with fake_server(http_peers.ports["echo"], answer_head):
            with pytest.raises(NoInstance):
                await client_node.client("client", (echo,)).request(Say("?"), timeout=1)
            await eventually(lambda: requests >= len(answers), "each answer was requested")
        async with Node([Echo], HttpTransport(http_peers.settings("echo"))):
            await client_node.registry.wait_for("echo")
            assert (await client_node.client("client", (echo,)).request(Say("x"))).text == "x"


async def test_a_peer_that_falls_silent_is_lost_until_it_answers_again(http_peers: HttpPeers) -> None:
    """The link sends no FIN and no reset, as when a container is paused or its host is gone."""
    service = Echo()
    async with Proxy(http_peers.ports["echo"]) as proxy:
        peers = (f"echo=http://127.0.0.1:{proxy.port}",)
        client_settings = msgspec.structs.replace(http_peers.settings("client"), peers=peers)
        settings = NodeSettings(request_timeout=30)
        async with (
            Node([lambda: service], HttpTransport(http_peers.settings("echo"))),
            Node([], HttpTransport(client_settings), settings=settings) as client_node,
        ):
            await client_node.registry.wait_for("echo")
            ctx = client_node.client("client", (echo,))
            waiting = asyncio.create_task(ctx.request(Wait()))
            await eventually(lambda: service.running == 1, "the request is running")
            proxy.freeze()
            with pytest.raises(InstanceLost):
                await asyncio.wait_for(waiting, 10)
            await eventually(lambda: not client_node.registry.members("echo"), "the silent instance is removed")
            proxy.thaw()
            await eventually(lambda: client_node.registry.members("echo"), "the instance is registered again")
            assert (await ctx.request(Say("again"))).text == "again"


async def test_a_peer_restarted_at_the_same_address_is_found_again(http_peers: HttpPeers) -> None:
    async with Node([], HttpTransport(http_peers.settings("client"))) as client_node:
        ctx = client_node.client("client", (echo,))
        for label in ("one", "two", "three"):
            async with Node([lambda label=label: Echo(label)], HttpTransport(http_peers.settings("echo"))):  # type: ignore[misc]  # a lambda's default
                await client_node.registry.wait_for("echo")
                assert (await ctx.request(Say("?"))).key == label
            await eventually(lambda: not client_node.registry.members("echo"), "the instance has left")


async def test_two_addresses_of_one_node_count_as_one_instance(http_peers: HttpPeers) -> None:
    service = Echo()
    async with Proxy(http_peers.ports["echo"]) as proxy:
        client_settings = msgspec.structs.replace(
            http_peers.settings("client"), peers=(*http_peers.settings("client").peers, f"echo=http://127.0.0.1:{proxy.port}")
        )
        async with (
            Node([lambda: service], HttpTransport(http_peers.settings("echo"))),
            Node([], HttpTransport(client_settings)) as client_node,
        ):
            await client_node.registry.wait_for("echo")
            ctx = client_node.client("client", (echo,))
            assert len(client_node.registry.members("echo")) == 1
            for _ in range(3):
                await proxy.refuse()
                proxy.cut()
                assert (await ctx.request(Say("x"), timeout=5)).text == "x"
                await proxy.listen()
            assert len(client_node.registry.members("echo")) == 1
            presence = client_node.environment.transport._opened.presence  # type: ignore[attr-defined]  # no public API shows which address is used
            await eventually(lambda: all(peer.node for peer in presence._peers["echo"].values()), "both addresses are connected")
            (address,) = presence._locations
            presence._locations[address] = next(peer for peer in presence._peers["echo"] if peer.base.port == proxy.port)
            hanging = asyncio.create_task(ctx.request(Wait(), timeout=20))
            await eventually(lambda: service.running == 1, "the request is running, sent through the proxy")
            proxy.freeze()
            with pytest.raises(InstanceLost):
                await asyncio.wait_for(hanging, 10)
            assert (await ctx.request(Say("x"), timeout=1)).text == "x", "the other address still works"
            proxy.thaw()


async def test_a_name_with_several_addresses_counts_as_several_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """One URL leads to two instances, as with a scaled service in compose or a headless one in Kubernetes."""
    square, port = InterchangeablePeers(NAMES, size=1), any_free_port()
    real = socket.getaddrinfo
    addresses = ["127.0.0.1"]

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            [entry for ip in addresses for entry in real(ip, *args, **kwargs)]
            if host == "echo.test"
            else real(host, *args, **kwargs)
        )

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    settings = [msgspec.structs.replace(square.settings(), host=ip, port=port, peers=()) for ip in ("127.0.0.1", "127.0.0.2")]
    client_settings = msgspec.structs.replace(square.settings(), port=any_free_port(), peers=(f"echo=http://echo.test:{port}",))
    async with Node([partial(Echo, "one")], HttpTransport(settings[0])), Node([], HttpTransport(client_settings)) as client_node:
        await client_node.registry.wait_for("echo")
        async with Node([partial(Echo, "two")], HttpTransport(settings[1])):
            addresses.append("127.0.0.2")
            client_node.environment.transport._opened.presence._resolve_again["echo"].set()  # type: ignore[attr-defined]  # otherwise the name is resolved again only after half a minute
            await eventually(lambda: len(client_node.registry.members("echo")) == 2, "both instances are registered")
            ctx = client_node.client("client", (echo,))
            assert {(await ctx.request(Say("?"))).key for _ in range(40)} == {"one", "two"}
        assert {(await ctx.request(Say("?"))).key for _ in range(10)} == {"one"}
