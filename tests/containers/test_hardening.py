"""Hardening: privileges, network access, and secrets of the containers, and how they are configured, started, and stopped."""

import asyncio
import json
import mmap
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.containers.engine import IMAGE, ROOT, SERVICES, STATEFUL, Containers, containers, engine, run
from tests.system_under_test import PASSWORD, System

EVERYWHERE = (*SERVICES, "mosquitto")
_MIB = 1 << 20


@pytest.fixture(params=["mqtt", pytest.param("http", marks=pytest.mark.long)])
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[Containers, System], None]:
    async with containers(request.param, tmp_path) as stack:
        yield stack


def secrets_of(folder: Path) -> Iterator[str]:
    """Yield every secret in the provisioned files: passwords and private keys."""
    for path in folder.rglob("*"):
        match path.name:
            case "mqtt-password":
                yield path.read_text()
            case "peer-key.json":
                yield json.loads(path.read_text())["keys"][0]["d"]
            case "private-key.pem":
                yield path.read_text().splitlines()[1]
            case "users.json":
                yield PASSWORD
            case "password":
                yield path.read_text().strip()


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
    for service in SERVICES:
        for path in ("/", "/etc", "/etc/callboard", "/opt/callboard", "/run/secrets", "/usr/bin", "/home"):
            output = await stack.exec(service, "sh", "-c", f"echo x > {path}/written", status=None)
            assert "ead-only" in output or "ermission denied" in output, f"{service} writes to {path}: {output}"
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


async def test_secrets_appear_in_no_log_inspection_or_environment(deployment: tuple[Containers, System], tmp_path: Path) -> None:
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


async def test_the_image_is_small_and_holds_no_secret_and_no_build_tool(tmp_path: Path) -> None:
    name = engine()
    image: dict[str, Any] = json.loads(await run(name, "image", "inspect", IMAGE))[0]
    base: dict[str, Any] = json.loads(await run(name, "image", "inspect", "python:3.11-slim-bookworm"))[0]
    grown = (image["Size"] - base["Size"]) / _MIB
    print(f"{grown:.0f} MiB on top of the base image")
    assert grown < 150
    assert image["Config"]["User"] == "10001:10001"
    assert "health.py" in json.dumps(image["Config"].get("Healthcheck") or image.get("Healthcheck") or image.get("HealthCheck"))
    for command in ("pip", "pip3", "gcc", "cc", "make"):
        assert not (
            await run(name, "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", f"command -v {command}", status=None)
        ).strip()
    output = await run(name, "run", "--rm", "--entrypoint", "python", IMAGE, "-c", "import pip", status=1)
    assert "No module named" in output
    assert "Not here: it needs" in await run(name, "run", "--rm", IMAGE), (
        "the help says which commands the image has and which it lacks"
    )
    assert "is not installed here" in await run(name, "run", "--rm", IMAGE, "dev", status=2)
    listed = await run(name, "run", "--rm", "--entrypoint", "find", IMAGE, "/opt", "/etc/callboard", "/run/secrets", "/data")
    wrong = [
        path for path in listed.split() if path.endswith(("peer-key.json", "mqtt-password", "private-key.pem", "users.json"))
    ]
    assert not wrong, "no secret file is in the image"
    secrets = [secret.encode() for secret in secrets_of(ROOT / "containers" / "secrets") if secret != PASSWORD]
    saved = tmp_path / "image.tar"
    await run(name, "save", "-o", str(saved), IMAGE)
    with saved.open("rb") as file:
        layers = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert layers.find(b"What the container engine asks again and again") >= 0, "the search finds text that is in a layer"
        assert not [secret for secret in secrets if layers.find(secret) >= 0], "no secret is in a layer"


async def test_settings_from_file_and_environment_apply_and_wrong_ones_stop_the_container(tmp_path: Path) -> None:
    name = engine()
    file = tmp_path / "callboard.toml"
    file.write_text('[gateway]\ntitle = "From a file"\n')
    file.chmod(0o644)

    async def title(*arguments: str) -> str:
        port = any_free_port()
        started = await run(
            name, "run", "--rm", "-d", "--read-only", "-p", f"{port}:8000", "-e", "CALLBOARD_GATEWAY__HOST=0.0.0.0", *arguments, IMAGE, "run", "gateway"
        )  # fmt: skip
        container = started.strip().splitlines()[-1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=2) as client:

                async def answers() -> bool:
                    try:
                        return bool((await client.get("/healthz")).is_success)
                    except httpx.HTTPError:
                        return False

                await eventually(answers, "the gateway has answered")
                found: str = (await client.get("/openapi.json")).json()["info"]["title"]
                return found
        finally:
            await run(name, "stop", "-t", "20", container)

    mounted = f"{file}:/etc/callboard/callboard.toml:ro"
    assert await title("-v", mounted) == "From a file"
    assert await title("-v", mounted, "-e", "CALLBOARD_GATEWAY__TITLE=From the environment") == "From the environment"
    for wrong, expected in (
        ("CALLBOARD_GATEWAY__PORT=abc", "CALLBOARD_GATEWAY__PORT: expected `int`"),
        ("CALLBOARD_GATEWAY__PROT=1", "did you mean gateway.port"),
        ("CALLBOARD_TRANSPORT__KIND=http", "transport.http.key and transport.http.peer_keys are needed"),
        ("CALLBOARD_AUTH__USERS_FILE=/nowhere", "/nowhere: the file cannot be read"),
        ("CALLBOARD_HEALTH__PORT=8000", "cannot listen on"),
    ):
        output = (await run(name, "run", "--rm", "-e", wrong, IMAGE, "run", "gateway", status=2)).strip()
        assert expected in output
        assert len(output.splitlines()) == 1, output


async def test_containers_start_in_any_order_and_stop_with_status_0(tmp_path: Path) -> None:
    async with containers("mqtt", tmp_path) as (stack, system):
        rider = await system.bearer()
        for service in EVERYWHERE:
            await stack.do("stop", service)
        for service in ("gateway", "rides", "notices", "wallet"):
            await stack.do("start", service)

        async def waits_for_the_network() -> bool:
            return bool((await stack.readiness("rides")).get("waits_for", [])[:1] == ["network"])

        await eventually(waits_for_the_network, "rides reports that it waits for the network")
        for service in ("mosquitto", "fleet", "auth", "devices"):
            await stack.do("start", service)
        await stack.ready()
        assert (await system.client.get("/wallet", headers=rider)).status_code == 200, (
            "sessions and keys have survived the restart"
        )
        requests = [asyncio.create_task(system.client.get("/scooters?lat=52.5&lon=13.4", headers=rider)) for _ in range(50)]
        await asyncio.sleep(0)
        for service in SERVICES:
            started = time.monotonic()
            await stack.do("stop", service, "-t", "25")
            assert time.monotonic() - started < 20, f"{service} stops before it is killed"
            assert (await stack.do("inspect", service, "--format", "{{.State.ExitCode}}")).strip() == "0"
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert {answer.status_code if isinstance(answer, httpx.Response) else type(answer).__name__ for answer in answers} <= {
            200,
            503,
        }


@pytest.mark.parametrize("kind", ["http", pytest.param("mqtt", marks=pytest.mark.long)])
async def test_the_doctor_reports_a_fault_only_when_a_peer_is_missing(kind: str, tmp_path: Path) -> None:
    async with containers(kind, tmp_path) as (stack, _):
        for service in SERVICES:
            findings = [json.loads(line) for line in (await stack.exec(service, "callboard", "doctor", "--json")).splitlines()]
            assert {finding["state"] for finding in findings} <= {"ok", "warning"}, findings
        subjects = {finding["what"] for finding in findings}
        assert {"settings", "limits", "clock", "peer auth"} <= subjects
        assert ({"broker", "access list"} if kind == "mqtt" else {"keys", "certificate"}) <= subjects
        await stack.do("stop", "wallet")

        async def wallet_reported_missing() -> bool:
            lines = (await stack.exec("rides", "callboard", "doctor", "--json", status=None)).splitlines()
            faults = [finding["what"] for line in lines if (finding := json.loads(line))["state"] == "fault"]
            return bool(faults == ["peer wallet"])

        await eventually(wallet_reported_missing, "the doctor finds that the wallet is missing")
