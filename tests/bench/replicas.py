"""Rides per second with 1, 2, and 3 replicas of every service on one PostgreSQL, over MQTT: `python -m tests.bench.replicas`.

Each service, each gateway, the broker, and the server are processes of this machine, and so are the clients. Beside the rate, the
processor time of each kind of process is printed for one ride, which says what bounds the rate.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.figures import report
from tests.postgres import Postgres
from tests.services.test_rides import add_scooter
from tests.system_under_test import PASSWORD, System, callboard_up

SERVICES = ("auth", "wallet", "fleet", "rides", "notices")
CLIENTS = 16


def processor_seconds(system: System, server: Postgres) -> dict[str, float]:
    """Return the processor time that each kind of process has used so far, in seconds."""
    assert system.process is not None
    listed = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True).stdout
    used: dict[str, float] = {}
    for line in listed.splitlines():
        pid, parent, *words = line.split()
        if int(parent) == system.process.process.pid:
            name = words[words.index("run") + 1] if "run" in words else "broker"
        elif words[0].startswith("postgres:") or f"-p {server.port} " in line:
            name = "postgres"
        else:
            continue
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used[name] = used.get(name, 0.0) + sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return used


async def measure(replicas: int, seconds: float) -> None:
    """Measure one number of replicas."""
    server = Postgres()
    server.start()
    url = server.new_database()
    counts = ",".join(f"{name}={replicas}" for name in SERVICES)
    try:
        with tempfile.TemporaryDirectory() as folder:
            async with callboard_up(Path(folder), "--replicas", counts, CALLBOARD_DATABASE__URL=url) as system:
                scooters = [await add_scooter(system, 52.5 + number / 1000) for number in range(CLIENTS)]
                async with aiohttp.ClientSession(system.url) as client:

                    async def ask(method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Any:
                        async with client.request(method, path, headers=headers, json=body) as answer:
                            assert answer.status < 300, await answer.text()
                            return await answer.json(content_type=None)

                    async def rider(number: int) -> dict[str, str]:
                        user = {"email": f"rider-{number}@example.com", "password": PASSWORD}
                        await ask("POST", "/users", body={**user, "name": "R"})
                        token = (await ask("POST", "/sessions", body=user))["access_token"]
                        headers = {"Authorization": f"Bearer {token}"}
                        await ask("POST", "/wallet/top-ups", headers, {"amount_cents": 1_000_000})
                        return headers

                    riders = [await rider(number) for number in range(CLIENTS)]
                    loop = asyncio.get_running_loop()

                    async def ride(number: int, until: float) -> int:
                        count = 0
                        while loop.time() < until:
                            async with client.post(
                                "/rides", headers=riders[number], json={"scooter_id": scooters[number]}
                            ) as answer:
                                if answer.status != 201:
                                    await asyncio.sleep(0.005)  # the event that frees the scooter has not been applied yet
                                    continue
                                started = await answer.json()
                            await ask("POST", f"/rides/{started['id']}/end", riders[number])
                            count += 1
                        return count

                    await asyncio.gather(*(ride(number, loop.time() + 3) for number in range(CLIENTS)))
                    before, began = processor_seconds(system, server), loop.time()
                    rides = sum(await asyncio.gather(*(ride(number, began + seconds) for number in range(CLIENTS))))
                    took, after = loop.time() - began, processor_seconds(system, server)
                    used = {name: spent - before.get(name, 0.0) for name, spent in after.items()}
                report(f"rides_{replicas}_replicas", rides / took, "rides a second")
                for name, spent in sorted(used.items(), key=lambda one: -one[1]):
                    report(f"rides_{replicas}_replicas_{name}", spent / rides * 1000, "ms of a processor for each ride")
                report(f"rides_{replicas}_replicas_processors", sum(used.values()) / took, "processors in use")
    finally:
        server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    for replicas in (1, 2, 3):
        asyncio.run(measure(replicas, parser.parse_args().seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
