"""What a container may do and see: its privileges, the ports that it reaches, and its secrets. The tests share one system."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from tests.containers.engine import SERVICES, STATEFUL, Containers, containers, secrets_of
from tests.system_under_test import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYWHERE = (*SERVICES, "mosquitto")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["mqtt", pytest.param("http", marks=pytest.mark.long)])
async def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[tuple[Containers, System], None]:
    async with containers(request.param, tmp_path_factory.mktemp("deployment")) as stack:
        yield stack


async def test_containers_run_unprivileged_and_write_only_to_their_volume(deployment: tuple[Containers, System]) -> None:
    stack, _ = deployment
    running = EVERYWHERE if stack.kind == "mqtt" else SERVICES
    for service in running:
        status = dict(
            line.split(":\t") for line in (await stack.exec(service, "cat", "/proc/1/status")).splitlines() if ":\t" in line
        )
        assert "0" not in status["Uid"].split(), f"{service} runs as root: {status['Uid']}"
        assert int(status["CapEff"], 16) == 0, f"{service} has capabilities"
        assert status["NoNewPrivs"] == "1"
    paths = ("/", "/etc", "/etc/callboard", "/opt/callboard", "/run/secrets", "/usr/bin", "/home")
    for service in SERVICES:
        output = await stack.exec(service, "sh", "-c", f"for path in {' '.join(paths)}; do (echo x > $path/written); done; true")
        refused = [line for line in output.splitlines() if "ead-only" in line or "ermission denied" in line]
        written = [path for path in paths if not any(f" {path}/written:" in line for line in refused)]
        assert not written, f"{service} writes to {written}: {output}"
    for service in STATEFUL:
        assert (
            await stack.exec(service, "sh", "-c", "touch /data/written && rm /data/written && stat -c %u /data")
        ).strip() == "10001"


async def test_containers_reach_only_the_ports_they_need(deployment: tuple[Containers, System]) -> None:
    stack, _ = deployment
    script = """
import socket, sys
for text in sys.argv[1:]:
    host, _, port = text.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        print(text)
    except OSError:
        pass
"""
    targets = [f"{name}:{port}" for name in EVERYWHERE for port in (22, 80, 1883, 8000, 8099, 8100, 8883)] + [
        "1.1.1.1:53",
        "192.0.2.1:80",
    ]
    for service in ("wallet", "devices"):
        found = set((await stack.exec(service, "python", "-c", script, *targets)).split())
        own = {f"{service}:8099", f"{service}:8100"}  # its own name resolves to an address on which it does not report its health
        expected = (
            {"gateway:8000", "mosquitto:8883"}
            if stack.kind == "mqtt"
            else {"gateway:8000", *(f"{name}:8100" for name in SERVICES)}
        )
        assert found - own == expected - own, f"{service} reaches {found}"
    running = EVERYWHERE if stack.kind == "mqtt" else SERVICES
    published = {service: (await stack.do("port", service, status=None)).strip() for service in running}
    assert [service for service, text in published.items() if text] == ["gateway"], published
    if stack.kind == "http":
        intruder = "import ssl, urllib.request; c = ssl.create_default_context(cafile='/run/shared/ca.pem'); urllib.request.urlopen(urllib.request.Request('https://wallet:8100/wallet/Hold', b'{}'), context=c)"
        assert "401" in await stack.exec("notices", "python", "-c", intruder, status=1), (
            "a caller without an assertion is refused"
        )
    else:
        intruder = "import asyncio; from transports.mqtt.settings import MqttSettings; from transports.mqtt.transport import MqttTransport; from config.doctor import Members; asyncio.run(MqttTransport(MqttSettings(url='mqtts://mosquitto:8883', ca_file='/run/shared/ca.pem', username='wallet', password='guessed')).open('intruder', Members()))"
        assert "BrokerRefused" in await stack.exec("notices", "python", "-c", intruder, status=1)


async def test_secrets_appear_in_no_log_inspection_or_environment(deployment: tuple[Containers, System]) -> None:
    stack, system = deployment
    await system.bearer()
    await system.client.post("/sessions", json={"email": "rider@example.com", "password": "wrong, but a secret"})
    secrets = set(secrets_of(stack.secrets))
    assert len(secrets) > 20
    for service in SERVICES:
        for source, text in (
            ("log", await stack.logs(service)),
            ("inspect", await stack.do("inspect", service)),
        ):
            assert not [secret for secret in secrets | {"wrong, but a secret"} if secret in text], (
                f"the {source} of {service} holds a secret"
            )
        shown = await stack.exec(service, "callboard", "config", "show")
        assert not [secret for secret in secrets if secret in shown]
        environment = await stack.exec(service, "cat", "/proc/1/environ")
        assert not [secret for secret in secrets if secret in environment]
    for service in SERVICES:  # each container has its own secrets and no other's
        seen = await stack.exec(service, "sh", "-c", "cat $(find /run /etc/callboard /data -type f 2>/dev/null) | tr -d '\\0'")
        mine = {(stack.secrets / service / "mqtt-password").read_text()}
        others = {(stack.secrets / other / "mqtt-password").read_text() for other in SERVICES} - mine
        assert all(secret in seen for secret in mine)
        assert not [secret for secret in others if secret in seen]
