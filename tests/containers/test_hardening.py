"""What a container may do, what it can reach, where secrets are not, and how it is set up and stopped."""

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
    async with containers(request.param, tmp_path) as made:
        yield made


def secrets_of(folder: Path) -> Iterator[str]:
    """Everything in the provisioned files that nobody may see: passwords, private keys."""
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


async def test_what_a_container_may_do(deployment: tuple[Containers, System]) -> None:
    made, _ = deployment
    running = EVERYWHERE if made.kind == "mqtt" else SERVICES
    for service in running:
        status = dict(
            line.split(":\t") for line in (await made.exec(service, "cat", "/proc/1/status")).splitlines() if ":\t" in line
        )
        assert "0" not in status["Uid"].split(), f"{service} runs as root: {status['Uid']}"
        assert int(status["CapEff"], 16) == 0, f"{service} has capabilities"
        assert status["NoNewPrivs"] == "1"
    for service in SERVICES:
        for place in ("/", "/etc", "/etc/callboard", "/opt/callboard", "/run/secrets", "/usr/bin", "/home"):
            said = await made.exec(service, "sh", "-c", f"echo x > {place}/written", status=None)
            assert "ead-only" in said or "ermission denied" in said, f"{service} writes to {place}: {said}"
    for service in STATEFUL:
        assert (
            await made.exec(service, "sh", "-c", "touch /data/written && rm /data/written && stat -c %u /data")
        ).strip() == "10001"


async def test_what_a_container_can_reach(deployment: tuple[Containers, System]) -> None:
    made, _ = deployment
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
    asked = [f"{name}:{port}" for name in EVERYWHERE for port in (22, 80, 1883, 8000, 8099, 8100, 8883)] + [
        "1.1.1.1:53",
        "192.0.2.1:80",
    ]
    for service in ("wallet", "devices"):
        found = set((await made.exec(service, "python", "-c", script, *asked)).split())
        own = {f"{service}:8099", f"{service}:8100"}  # its own name is an address on which it does not say how it is
        expected = (
            {"gateway:8000", "mosquitto:8883"}
            if made.kind == "mqtt"
            else {"gateway:8000", *(f"{name}:8100" for name in SERVICES)}
        )
        assert found - own == expected - own, f"{service} reaches {found}"
    running = EVERYWHERE if made.kind == "mqtt" else SERVICES
    published = {service: (await made.do("port", service, status=None)).strip() for service in running}
    assert [service for service, text in published.items() if text] == ["gateway"], published
    if made.kind == "http":
        stranger = "import ssl, urllib.request; c = ssl.create_default_context(cafile='/run/shared/ca.pem'); urllib.request.urlopen(urllib.request.Request('https://wallet:8100/wallet/Hold', b'{}'), context=c)"
        assert "401" in await made.exec("notices", "python", "-c", stranger, status=1), "who proves nothing is refused"
    else:
        stranger = "import asyncio; from transports.mqtt.settings import MqttSettings; from transports.mqtt.transport import MqttTransport; from config.doctor import Members; asyncio.run(MqttTransport(MqttSettings(url='mqtts://mosquitto:8883', ca_file='/run/shared/ca.pem', username='wallet', password='guessed')).open('stranger', Members()))"
        assert "BrokerRefused" in await made.exec("notices", "python", "-c", stranger, status=1)


async def test_where_secrets_are_not(deployment: tuple[Containers, System], tmp_path: Path) -> None:
    made, system = deployment
    await system.bearer()
    await system.client.post("/sessions", json={"email": "rider@example.com", "password": "wrong, but a secret"})
    secrets = set(secrets_of(made.secrets))
    assert len(secrets) > 20
    for service in SERVICES:
        for what, text in (("log", await made.logs(service)), ("inspect", await made.do("inspect", service))):
            assert not [secret for secret in secrets | {"wrong, but a secret"} if secret in text], f"the {what} of {service}"
        shown = await made.exec(service, "callboard", "config", "show")
        assert not [secret for secret in secrets if secret in shown]
        environment = await made.exec(service, "cat", "/proc/1/environ")
        assert not [secret for secret in secrets if secret in environment]
    for service in SERVICES:  # each has its own, and nobody else's
        seen = await made.exec(service, "sh", "-c", "cat $(find /run /etc/callboard /data -type f 2>/dev/null) | tr -d '\\0'")
        mine = {(made.secrets / service / "mqtt-password").read_text()}
        others = {(made.secrets / other / "mqtt-password").read_text() for other in SERVICES} - mine
        assert all(secret in seen for secret in mine)
        assert not [secret for secret in others if secret in seen]


async def test_the_image(tmp_path: Path) -> None:
    name = engine()
    here: dict[str, Any] = json.loads(await run(name, "image", "inspect", IMAGE))[0]
    base: dict[str, Any] = json.loads(await run(name, "image", "inspect", "python:3.11-slim-bookworm"))[0]
    grown = (here["Size"] - base["Size"]) / _MIB
    print(f"{grown:.0f} MiB beyond the base")
    assert grown < 150
    assert here["Config"]["User"] == "10001:10001"
    assert "health.py" in json.dumps(here["Config"].get("Healthcheck") or here.get("Healthcheck") or here.get("HealthCheck"))
    for command in ("pip", "pip3", "gcc", "cc", "make"):
        assert not (
            await run(name, "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", f"command -v {command}", status=None)
        ).strip()
    said = await run(name, "run", "--rm", "--entrypoint", "python", IMAGE, "-c", "import pip", status=1)
    assert "No module named" in said
    assert "Not here: it needs" in await run(name, "run", "--rm", IMAGE), "what there is, and what there is not"
    assert "is not installed here" in await run(name, "run", "--rm", IMAGE, "dev", status=2)
    listed = await run(name, "run", "--rm", "--entrypoint", "find", IMAGE, "/opt", "/etc/callboard", "/run/secrets", "/data")
    wrong = [
        path for path in listed.split() if path.endswith(("peer-key.json", "mqtt-password", "private-key.pem", "users.json"))
    ]
    assert not wrong, "no secret is in the image"
    secrets = [secret.encode() for secret in secrets_of(ROOT / "containers" / "secrets") if secret != PASSWORD]
    saved = tmp_path / "image.tar"
    await run(name, "save", "-o", str(saved), IMAGE)
    with saved.open("rb") as file:
        layers = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert layers.find(b"What the container engine asks again and again") >= 0, "what is in a layer would be found"
        assert not [secret for secret in secrets if layers.find(secret) >= 0], "nor in one of its layers"


async def test_settings_from_outside_are_obeyed_and_wrong_ones_refused(tmp_path: Path) -> None:
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

                await eventually(answers, "the gateway answers")
                found: str = (await client.get("/openapi.json")).json()["info"]["title"]
                return found
        finally:
            await run(name, "stop", "-t", "20", container)

    mounted = f"{file}:/etc/callboard/callboard.toml:ro"
    assert await title("-v", mounted) == "From a file"
    assert await title("-v", mounted, "-e", "CALLBOARD_GATEWAY__TITLE=From the environment") == "From the environment"
    for wrong, said in (
        ("CALLBOARD_GATEWAY__PORT=abc", "CALLBOARD_GATEWAY__PORT: expected `int`"),
        ("CALLBOARD_GATEWAY__PROT=1", "did you mean gateway.port"),
        ("CALLBOARD_TRANSPORT__KIND=http", "transport.http.key and transport.http.peer_keys are needed"),
        ("CALLBOARD_AUTH__USERS_FILE=/nowhere", "/nowhere: the file cannot be read"),
        ("CALLBOARD_HEALTH__PORT=8000", "cannot listen on"),
    ):
        output = (await run(name, "run", "--rm", "-e", wrong, IMAGE, "run", "gateway", status=2)).strip()
        assert said in output
        assert len(output.splitlines()) == 1, output


async def test_starting_in_any_order_and_stopping_in_good_order(tmp_path: Path) -> None:
    async with containers("mqtt", tmp_path) as (made, system):
        rider = await system.bearer()
        for service in EVERYWHERE:
            await made.do("stop", service)
        for service in ("gateway", "rides", "notices", "wallet"):
            await made.do("start", service)

        async def waits() -> bool:
            return bool((await made.readiness("rides")).get("waits_for", [])[:1] == ["network"])

        await eventually(waits, "rides says what it waits for")
        for service in ("mosquitto", "fleet", "auth", "devices"):
            await made.do("start", service)
        await made.ready()
        assert (await system.client.get("/wallet", headers=rider)).status_code == 200, "sessions and keys have outlived it"
        asked = [asyncio.create_task(system.client.get("/scooters?lat=52.5&lon=13.4", headers=rider)) for _ in range(50)]
        await asyncio.sleep(0)
        for service in SERVICES:
            begun = time.monotonic()
            await made.do("stop", service, "-t", "25")
            assert time.monotonic() - begun < 20, f"{service} stops by itself, before it is killed"
            assert (await made.do("inspect", service, "--format", "{{.State.ExitCode}}")).strip() == "0"
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {answer.status_code if isinstance(answer, httpx.Response) else type(answer).__name__ for answer in answers} <= {
            200,
            503,
        }


@pytest.mark.parametrize("kind", ["http", pytest.param("mqtt", marks=pytest.mark.long)])
async def test_the_doctor(kind: str, tmp_path: Path) -> None:
    async with containers(kind, tmp_path) as (made, _):
        for service in SERVICES:
            findings = [json.loads(line) for line in (await made.exec(service, "callboard", "doctor", "--json")).splitlines()]
            assert {finding["state"] for finding in findings} <= {"ok", "warning"}, findings
        whats = {finding["what"] for finding in findings}
        assert {"settings", "limits", "clock", "peer auth"} <= whats
        assert ({"broker", "access list"} if kind == "mqtt" else {"keys", "certificate"}) <= whats
        await made.do("stop", "wallet")

        async def noticed() -> bool:
            lines = (await made.exec("rides", "callboard", "doctor", "--json", status=None)).splitlines()
            faults = [finding["what"] for line in lines if (finding := json.loads(line))["state"] == "fault"]
            return bool(faults == ["peer wallet"])

        await eventually(noticed, "the doctor finds that the wallet is missing")
