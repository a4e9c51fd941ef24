"""The HTTP transport between two nodes: limits, certificates, and what a caller gets when a peer fails."""

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest

from config.provision import provision
from runtime import InstanceLost, Invalid, Node, NodeSettings, NoInstance, ServiceError, StartError, Unreachable
from runtime.network import Address
from runtime.service.describe import describe
from runtime.testing import RecordingReceiver
from tests.http_peers import HttpPeers
from tests.project import RENTAL
from tests.transports.http.echo import Echo, Much, Say, Tell, Wait, echo, echo_over_http, fake_server, presence_answer
from transports.http.transport import HttpTransport


async def test_a_key_may_be_any_text_that_utf8_can_encode(http_peers: HttpPeers) -> None:
    async with echo_over_http(http_peers, Echo()) as (_, ctx):
        for key in (" a", "a ", "ü", "100 %", "a\r\nX: y", "\0", "%20"):
            assert (await ctx.request(Say(key), key=key)).text == key
        with pytest.raises(Invalid):
            await ctx.request(Say("x"), key="\ud800")


async def test_too_large_requests_and_replies_fail_and_say_whether_they_may_have_run(http_peers: HttpPeers) -> None:
    service = Echo()
    async with echo_over_http(http_peers, service, max_body=100_000) as (_, ctx):
        for size in (150_000, 900_000, 3_000_000):
            with pytest.raises(ServiceError) as refused:
                await ctx.request(Say("x" * size))
            assert not refused.value.maybe_delivered, "the request was not sent"
        with pytest.raises(ServiceError) as failed:
            await ctx.request(Much(150_000))
        assert failed.value.code == "internal"
        assert (await ctx.request(Say("small"))).text == "small"
    small_limit = msgspec.structs.replace(http_peers.settings("client"), max_body=100_000)
    async with (
        Node([lambda: service], HttpTransport(http_peers.settings("echo"))),
        Node([], HttpTransport(small_limit)) as client_node,
    ):
        await client_node.registry.wait_for("echo")
        with pytest.raises(InstanceLost):
            await client_node.client("client", (echo,)).request(Much(150_000))
        assert service.ran >= 2, "the request ran, so it must not be reported as not delivered"


@pytest.mark.parametrize("answer", [
    b"", b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\nbad", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", b"garbage\r\n\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 503 No\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}",
])  # fmt: skip
async def test_an_invalid_answer_is_reported_as_maybe_delivered(http_peers: HttpPeers, answer: bytes) -> None:
    """Another program answers on the service's port, and what it did with the request is unknown."""
    manifest = describe(Echo, Address("echo", "fake"), "1")
    presence = msgspec.json.encode({"version": 1, "heads": 0, "manifest": manifest})

    async def answer_head(head: bytes) -> bytes:
        if not head.startswith(b"GET"):
            return answer
        if b"version=1" in head:
            await asyncio.Event().wait()
        return presence_answer(presence)

    server = fake_server(http_peers.ports["echo"], answer_head)
    async with server, Node([], HttpTransport(http_peers.settings("client")), name="client") as client_node:
        await client_node.registry.wait_for("echo")
        with pytest.raises(ServiceError) as lost:
            await client_node.client("client", (echo,)).request(Wait(), timeout=5)
        assert lost.value.maybe_delivered, lost.value


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has TCP_USER_TIMEOUT, which ends such connections"
)
async def test_a_connection_that_accepts_no_more_data_is_ended_before_the_deadline(http_peers: HttpPeers) -> None:
    """The peer stops reading, as when the network is cut, although its presence is still visible. The call fails far before its deadline."""
    manifest = describe(Echo, Address("echo", "fake"), "1")
    presence = msgspec.json.encode({"version": 1, "heads": 0, "manifest": manifest})

    async def answer_head(head: bytes) -> bytes:
        if not head.startswith(b"GET"):
            await asyncio.Event().wait()
        if b"version=1" in head:
            await asyncio.sleep(0.1)  # a short long poll
        return presence_answer(presence)

    client_settings = msgspec.structs.replace(http_peers.settings("client"), heartbeat=1)
    server = fake_server(http_peers.ports["echo"], answer_head)
    async with server, Node([], HttpTransport(client_settings), settings=NodeSettings(request_timeout=600)) as client_node:
        await client_node.registry.wait_for("echo")
        with pytest.raises(InstanceLost):
            await asyncio.wait_for(client_node.client("client", (echo,)).request(Tell("x" * 15_000_000)), 30)


async def test_certificates_are_verified(http_peers: HttpPeers, tmp_path: Path) -> None:
    provision(tmp_path / "secrets", RENTAL)
    files = tmp_path / "secrets"
    server_files = {
        "certificate_file": str(files / "wallet" / "certificate.pem"),
        "private_key_file": str(files / "wallet" / "private-key.pem"),
    }
    peers = (f"echo=https://localhost:{http_peers.ports['echo']}",)
    server = msgspec.structs.replace(http_peers.settings("echo"), **server_files)
    client_settings = msgspec.structs.replace(
        http_peers.settings("client"), peers=peers, ca_file=str(files / "shared" / "ca.pem")
    )
    async with Node([Echo], HttpTransport(server)):
        async with Node([], HttpTransport(client_settings)) as client_node:
            await client_node.registry.wait_for("echo")
            assert (await client_node.client("client", (echo,)).request(Say("x"))).text == "x"
        for wrong in (
            msgspec.structs.replace(client_settings, ca_file=None),
            msgspec.structs.replace(client_settings, peers=(f"echo=https://127.0.0.1:{http_peers.ports['echo']}",)),
        ):
            async with Node([], HttpTransport(wrong)) as client_node:
                with pytest.raises((NoInstance, Unreachable)):
                    await client_node.client("client", (echo,)).request(Say("x"), timeout=2)
    with pytest.raises(StartError, match="go together"):
        await HttpTransport(msgspec.structs.replace(server, private_key_file=None)).open("x", RecordingReceiver())
    with pytest.raises(StartError, match="ca_file"):
        await HttpTransport(msgspec.structs.replace(client_settings, ca_file="/nowhere")).open("x", RecordingReceiver())


async def test_a_node_with_the_key_of_another_service_does_not_start(http_peers: HttpPeers) -> None:
    wrong = msgspec.structs.replace(http_peers.settings("echo"), key=http_peers.private["other"])
    with pytest.raises(StartError, match="has no key of echo, only of other"):
        async with Node([Echo], HttpTransport(wrong)):
            pass
