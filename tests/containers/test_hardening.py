"""The image, and how containers are configured, started, inspected by the doctor, and stopped."""

import asyncio
import json
import mmap
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.containers.engine import IMAGE, ROOT, SERVICES, containers, engine, run, secrets_of
from tests.system_under_test import PASSWORD

EVERYWHERE = (*SERVICES, "mosquitto")
_MIB = 1 << 20


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
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=2, verify=False) as client:

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
        ("CALLBOARD_SERVICES__AUTH__SETTINGS__USERS_FILE=/nowhere", "/nowhere: the file cannot be read"),
        ("CALLBOARD_AUTH__USERS_FILE=/nowhere", "/nowhere: the file cannot be read"),
        ("CALLBOARD_HEALTH__PORT=8000", "cannot listen on"),
    ):
        service = "auth" if "AUTH" in wrong else "gateway"
        output = (await run(name, "run", "--rm", "-e", wrong, IMAGE, "run", service, status=2)).strip()
        assert expected in output
        assert len(output.splitlines()) == 1, output


@pytest.mark.long
async def test_containers_start_in_any_order_and_stop_with_status_0(tmp_path: Path) -> None:
    async with containers("mqtt", tmp_path) as (stack, system):
        rider = await system.bearer()
        for service in EVERYWHERE:
            await stack.do("stop", service)
        for service in ("gateway", "rides", "notices", "wallet"):
            await stack.do("start", service)

        async def waits_for_the_network() -> bool:
            return bool((await stack.readiness("rides")).get("waits_for", [])[:1] == ["network"])

        await eventually(waits_for_the_network, "rides reports that it waits for the network", 60)
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


@pytest.mark.long
@pytest.mark.parametrize("kind", ["http", "mqtt"])
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
