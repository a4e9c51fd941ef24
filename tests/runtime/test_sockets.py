"""Hosts to listen on, in every form that a user writes."""

import socket

import httpx
import pytest

from config.cli.common import http_url
from config.cli.quickstart import warn_if_public
from config.health import serve_health
from config.settings import HealthSettings, Settings
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node, StartError
from runtime.sockets import PortTaken, any_free_port, free_port, listen_address
from transports.memory import MemoryTransport

HOSTS = ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "::1"]


@pytest.mark.parametrize("host", HOSTS)
async def test_every_server_listens_on_a_name_and_on_an_address_with_brackets(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node([lambda: Gateway(GatewaySettings(host=host, port=0))], MemoryTransport())
    health = HealthSettings(host=host, port=any_free_port())
    async with node, serve_health(health, node), httpx.AsyncClient(verify=False) as client:
        gateway = node.service(Gateway)
        assert gateway is not None
        for port in (gateway.port, health.port):
            assert (await client.get(f"{http_url(host, port)}/healthz")).status_code == 200
    warn_if_public(Settings(gateway=GatewaySettings(host=host)))
    assert capsys.readouterr().err == ""


def test_a_name_without_an_address_is_refused_with_the_setting() -> None:
    for host in ("no-such-host.invalid", "", "[::1", "256.0.0.1", "a..b", "x" * 300):
        with pytest.raises(StartError, match=r"CALLBOARD_GATEWAY__HOST: .* has no address: expected an address"):
            free_port(host, 0, "CALLBOARD_GATEWAY__PORT")


def test_an_address_of_another_machine_is_refused_with_the_setting() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0 .*: choose an address .* with CALLBOARD_HEALTH__HOST"):
        free_port("192.0.2.1", 0, "CALLBOARD_HEALTH__PORT")


def test_a_port_in_use_is_refused_however_its_host_is_written() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port: int = holder.getsockname()[1]
        for host in ("localhost", "127.0.0.1", "0.0.0.0"):
            with pytest.raises(PortTaken, match=f":{port} .*: stop the process that does, or choose another port with X"):
                free_port(host, port, "X")


def test_a_name_with_addresses_of_both_kinds_stands_for_the_one_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    found: list[object] = []

    def getaddrinfo(host: str, port: None, type: int) -> list[object]:
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for found[:], expected in (([six, four], "127.0.0.1"), ([six], "::1")):
        assert listen_address("both", "X") == expected
