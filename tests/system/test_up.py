"""`callboard up`, as an operator uses it: a process per service, replicas, restarts, external scooters, and one Ctrl-C."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import httpx

from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.services import consistency
from tests.system.process import Callboard, command
from tests.system_under_test import PASSWORD, System, callboard_up


def pids(system: System) -> dict[str, list[int]]:
    """Return the ids of the processes that `up` has started, by service."""
    assert system.process is not None
    listed = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[int]] = {}
    for line in listed.splitlines():
        pid, parent, *words = line.split()
        if int(parent) == system.process.process.pid and words[0] != "ps":
            found.setdefault(words[words.index("run") + 1] if "run" in words else "broker", []).append(int(pid))
    return found


async def balance(client: httpx.AsyncClient, headers: dict[str, str]) -> int:
    answer = await client.get("/wallet", headers=headers)
    assert answer.status_code == 200, answer.text
    cents: int = answer.json()["balance_cents"]
    return cents


async def test_the_system_recovers_when_any_process_is_killed(tmp_path: Path) -> None:
    async with callboard_up(tmp_path, "--replicas", "gateway=2", CALLBOARD_DEVICES__COUNT="1") as system:
        assert system.process is not None
        rider, operator = await system.bearer(), await system.bearer("operator@example.com")
        started = pids(system)
        assert {name: len(found) for name, found in started.items()} == {
            "broker": 1, "auth": 1, "wallet": 1, "fleet": 1, "rides": 1, "notices": 1, "devices": 1, "gateway": 2,
        }  # fmt: skip
        for number, name in enumerate(("wallet", "gateway", "broker", "rides")):
            os.kill(started[name][0], signal.SIGKILL)

            async def topped_up(number: int = number) -> bool:
                async with httpx.AsyncClient(base_url=system.url, timeout=20, verify=False) as client:
                    try:
                        answer = await client.post(
                            "/wallet/top-ups", json={"amount_cents": 100}, headers={**rider, "Idempotency-Key": f"top-{number}"}
                        )
                    except httpx.HTTPError:  # the connection led to the killed gateway
                        return False
                    return answer.status_code == 201

            await eventually(topped_up, f"top-ups work again after {name} was killed")
            async with httpx.AsyncClient(base_url=system.url, timeout=20, verify=False) as client:
                assert await balance(client, rider) == 100 * (number + 1), "a top-up repeated with its key counts once"
        assert system.process.output.count("was ended by SIGKILL; starting it again") == 4

        async def all_back() -> bool:
            answer = await system.client.get("/console/services", headers=operator)
            live = [row["service"] for row in answer.json().get("items", []) if row["state"] == "there"]
            return {"auth", "wallet", "fleet", "rides", "notices", "devices"} <= set(live)

        await eventually(all_back, "every service is back")

        async def scooters() -> list[str]:
            answer = await system.client.get("/scooters?lat=52.52&lon=13.405&radius_m=5000", headers=rider)
            return [item["id"] for item in answer.json().get("items", [])]

        await eventually(scooters, "the scooter is registered")
        (scooter,) = await scooters()
        await system.client.post("/wallet/top-ups", json={"amount_cents": 500}, headers=rider)
        start_answer = await system.client.post("/rides", json={"scooter_id": scooter}, headers=rider)
        assert start_answer.status_code == 201, start_answer.text
        ended = await system.client.post(f"/rides/{start_answer.json()['id']}/end", headers=rider)
        assert ended.status_code == 200, ended.text
        await eventually(lambda: not consistency.violations(system.folder), "the databases are consistent")


async def test_services_lists_the_running_instances(tmp_path: Path) -> None:
    async with callboard_up(tmp_path, "--replicas", "gateway=2") as system:
        assert system.process is not None
        environment = {
            "CALLBOARD_GATEWAY__PORT": str(system.process.port), "CALLBOARD_DEV__PASSWORD": PASSWORD,
            "CALLBOARD_DATABASE__FOLDER": str(system.folder),
        }  # fmt: skip
        status, output = await command(tmp_path, "services", "--as", "operator@example.com", **environment)
        assert status == 0, output
        rows = [line.split() for line in output.splitlines()]
        assert rows[0] == ["service", "node", "version", "state", "load", "in_flight", "requests", "events"]
        assert sorted(row[0] for row in rows[1:]) == [
            "auth",
            "devices",
            "fleet",
            "gateway",
            "gateway",
            "notices",
            "rides",
            "wallet",
        ]
        status, output = await command(tmp_path, "services", "--as", "rider@example.com", **environment)
        assert (status, "operators and admins may look" in output) == (2, True)
        answer = await system.client.get("/console/services")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        async with Callboard(
            tmp_path, "services", "--watch", "--json", "--as", "operator@example.com", **environment
        ) as watching:
            await watching.says('"service":"wallet"', 2)
            assert await watching.ends(signal.SIGINT) == 0


async def test_external_scooters_connect_with_their_own_credentials(tmp_path: Path) -> None:
    async with callboard_up(tmp_path) as system:
        assert system.process is not None
        rider = await system.bearer()
        folder = {"CALLBOARD_DATABASE__FOLDER": str(system.folder)}
        async with Callboard(tmp_path, "devices", "--count", "5", **folder) as devices:
            await devices.says("5 of 5 scooters are connected")

            async def reported() -> bool:
                found = (await system.client.get("/scooters?lat=52.52&lon=13.405&radius_m=5000", headers=rider)).json()["items"]
                return len(found) == 5

            await eventually(reported, "the fleet lists all five scooters")
            await system.client.post("/wallet/top-ups", json={"amount_cents": 1000}, headers=rider)
            scooter = (await system.client.get("/scooters?lat=52.52&lon=13.405&radius_m=5000", headers=rider)).json()["items"][0]
            ride = (await system.client.post("/rides", json={"scooter_id": scooter["id"]}, headers=rider)).json()
            await devices.says(f"scooter {scooter['id']} is unlocked")

            async def moved() -> bool:
                now = (await system.client.get(f"/scooters/{scooter['id']}", headers=rider)).json()
                return (now["lat"], now["lon"]) != (scooter["lat"], scooter["lon"])

            await eventually(moved, "the scooter has moved")
            await system.client.post(f"/rides/{ride['id']}/end", headers=rider)
            await devices.says(f"scooter {scooter['id']} is locked")
            assert await devices.ends(signal.SIGINT) == 0
        async with Callboard(tmp_path, "devices", "--count", "5", "--json", **folder) as again:
            await again.says('{"connected":5,"scooters":5}')
            assert await again.ends(signal.SIGINT) == 0
        assert len(consistency.query(system.folder, "fleet", "SELECT id FROM scooters")) == 5, (
            "the same scooters are simulated again"
        )
        assert "scooter-" not in system.process.output


async def test_up_and_devices_report_in_one_line_why_they_cannot_start(tmp_path: Path) -> None:
    for arguments, expected in (
        (("--replicas", "wallet=2"), "wallet keeps its state in an SQLite file, which its replicas cannot share"),
        (("--replicas", "gatway=2"), "no service is called 'gatway'"),
        (("--replicas", "gateway=none"), "expected NAME=N, as gateway=2"),
        (("nobody",), "no service is called 'nobody'"),
    ):
        status, output = await command(tmp_path, "up", *arguments)
        assert (status, len(output.splitlines())) == (2, 1), output
        assert expected in output
    status, output = await command(tmp_path, "devices", CALLBOARD_DATABASE__FOLDER=str(tmp_path / "empty"))
    assert (status, "start `callboard up` in this folder first" in output) == (2, True)


async def test_no_process_outlives_a_killed_up(tmp_path: Path) -> None:
    port = any_free_port()
    async with Callboard(tmp_path, "up", "wallet", CALLBOARD_GATEWAY__PORT=str(port)) as running:
        await running.says("callboard.node: wallet-")
        broker = int((tmp_path / "data" / "broker" / "pid").read_text())
        running.process.kill()
        await running.process.wait()

        def ended() -> bool:
            try:
                os.kill(broker, 0)
            except ProcessLookupError:
                return True
            return False

        await eventually(ended, "the broker has ended, too")
        await asyncio.wait_for(running.ends(), 30)  # the output ends when the last process that holds it ends
