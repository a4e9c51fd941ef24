"""The system in real containers, run with compose on docker or podman."""

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from config.provision import provision
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.project import RENTAL
from tests.system_under_test import PASSWORD, USERS, System

ROOT = Path(__file__).parent.parent.parent
STATEFUL = ("auth", "wallet", "fleet", "rides", "notices", "devices")
SERVICES = (*STATEFUL, "gateway")
KINDS = {"mqtt": (), "http": ("compose.http.yaml",), "http+mqtt": ("compose.http-mqtt.yaml",)}
IMAGE = "callboard"
_SIOCSIFHWADDR = 0x8924
_ETHERNET = 1
_LOCAL_IMAGES = Path(os.environ.get("CONTAINER_ENGINE", ROOT.parent / "shared" / "container-engine"))
"""The folder of a script that builds images locally, for machines that cannot pull any."""


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


def engine() -> str:
    """Return `docker` if its engine answers, otherwise `podman`.

    Raises:
        AssertionError: if neither answers.
    """
    for name in ("docker", "podman"):
        if shutil.which(name) and os.system(f"{name} info >/dev/null 2>&1") == 0:
            return name
    raise AssertionError("neither docker nor podman answers: install one of them, or run .ci/engine")


async def run(*command: str, status: int | None = 0, **environment: str) -> str:
    """Run a command, and return its output.

    Args:
        command: the program and its arguments.
        status: the expected exit status, or None for any.
        environment: additional environment variables.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace")
    # without systemd, podman warns at each start that it cannot schedule health checks
    output = "\n".join(line for line in output.splitlines() if "systemd connection" not in line)
    assert status is None or process.returncode == status, f"{command}: {process.returncode}\n{output}"
    return output


async def build(*options: str, tag: str = IMAGE) -> None:
    """Build an image from the work tree."""
    arguments = [*options, "-t", tag, "-f", "containers/Dockerfile", "."]
    if engine() == "docker":
        await run("docker", "build", *arguments)
    elif (_LOCAL_IMAGES / "build.sh").exists():
        await run(str(_LOCAL_IMAGES / "build.sh"), *arguments)
    else:
        await run("podman", "build", "--format", "docker", *arguments)


def _keep_address(bridge: Path) -> None:
    """Pin the MAC address of a network bridge to its current value.

    Otherwise a bridge uses the lowest address of its containers, which changes when that container is killed. For half a
    minute, the others then send their name lookups to the old address. Docker pins the address, podman 4.3 does not.
    """
    address = bytes.fromhex((bridge / "address").read_text().strip().replace(":", ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFHWADDR, struct.pack("16sH6s8x", bridge.name.encode(), _ETHERNET, address))


class Containers:
    """A running system in containers. Its volumes are deleted when the block ends."""

    def __init__(self, kind: str, folder: Path, **settings: dict[str, str]) -> None:
        self.kind = kind
        self.engine = engine()
        self.project = f"callboard-{secrets.token_hex(4)}"
        self.port = any_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.secrets = folder / "secrets"
        provision(self.secrets, RENTAL)
        users = self.secrets / "auth" / "users.json"
        users.unlink()
        users.write_bytes(msgspec.json.encode(USERS))
        users.chmod(0o444)
        more = folder / "compose.test.yaml"
        more.write_text(json.dumps({"services": {name: {"environment": variables} for name, variables in settings.items()}}))
        files = ["containers/compose.yaml", *(f"containers/{name}" for name in KINDS[kind]), str(more)]
        compose = ["docker", "compose"] if self.engine == "docker" else [str(Path(sys.executable).parent / "podman-compose")]
        self._compose = [*compose, "-p", self.project, *(part for file in files for part in ("-f", file))]
        self._environment = {"PORT": str(self.port), "SECRETS": str(self.secrets)}
        self._names: dict[str, str] = {}

    async def compose(self, *arguments: str, status: int | None = 0) -> str:
        return await run(*self._compose, *arguments, status=status, **self._environment)

    async def __aenter__(self) -> "Containers":
        await self.compose("up", "-d")
        if self.engine == "podman":
            for name in ("inside", "outside"):
                (network,) = json.loads(await run("podman", "network", "inspect", f"{self.project}_{name}"))
                bridge = Path("/sys/class/net", network["network_interface"])
                if bridge.exists():  # without root, the bridge is in another network namespace
                    _keep_address(bridge)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.compose("down", "-v", "-t", "1", status=None)

    async def name(self, service: str) -> str:
        """Return the name of a service's container."""
        if service not in self._names:
            found = await run(
                self.engine, "ps", "-a", "--format", "{{.Names}}",
                "--filter", f"label=com.docker.compose.project={self.project}", "--filter", f"label=com.docker.compose.service={service}",
            )  # fmt: skip
            assert found.strip(), f"no container of {service} was found"
            self._names[service] = found.strip().splitlines()[0]
        return self._names[service]

    async def do(self, verb: str, service: str, *arguments: str, status: int | None = 0) -> str:
        """Run `docker <verb> <arguments> <container>`, and return its output."""
        return await run(self.engine, verb, *arguments, await self.name(service), status=status)

    async def kill(self, service: str) -> None:
        """Kill a container, and wait until the engine has cleaned up after it."""
        await self.do("kill", service)
        await self.do("wait", service)
        if self.engine == "podman":  # otherwise a cleanup that is still running removes the restarted container's name
            await self.do("container", service, "cleanup")

    async def exec(self, service: str, *command: str, status: int | None = 0) -> str:
        """Run a command in a container, and return its output."""
        return await run(self.engine, "exec", await self.name(service), *command, status=status)

    async def python(self, service: str, script: str) -> str:
        """Run a Python script in a container, and return its output."""
        return (await self.exec(service, "python", "-c", script)).strip()

    async def logs(self, service: str) -> str:
        return await self.do("logs", service, status=None)

    async def network(self, service: str) -> str:
        """Return the name of the network between the services."""
        found = await run(self.engine, "inspect", "--format", "{{json .NetworkSettings.Networks}}", await self.name(service))
        return next(str(name) for name in json.loads(found) if name.endswith("inside"))

    async def disconnect(self, service: str, network: str) -> None:
        """Disconnect a container from a network."""
        await run(self.engine, "network", "disconnect", network, await self.name(service))

    async def connect(self, service: str, network: str) -> None:
        """Connect a container to a network again, until the gateway's container reaches it there.

        Raises:
            AssertionError: if the engine does not bring it back.
        """
        reach = f"import socket; socket.create_connection(({service!r}, 8100), 2).close()"
        for _ in range(3):
            await run(self.engine, "network", "connect", "--alias", service, network, await self.name(service))
            for _ in range(5):
                answer = await self.exec("gateway", "python", "-I", "-S", "-c", reach, status=None)
                if not answer:
                    return
                await asyncio.sleep(0.5)
            print(f"{service} cannot be reached on {network} yet: {answer.splitlines()[-1]}")
            await self.disconnect(service, network)
        raise AssertionError(f"the engine did not connect {service} to {network} again: {answer}")

    async def readiness(self, service: str) -> dict[str, Any]:
        """Return the readiness report of a service, or an empty one if there is none."""
        text = await self.exec(service, "python", "-I", "-S", "/opt/callboard/health.py", status=None)
        try:
            found: dict[str, Any] = json.loads(text.splitlines()[0])
        except (ValueError, IndexError):
            return {}
        return found

    async def ready(self, services: Sequence[str] = SERVICES) -> None:
        """Wait until services report that they are ready, and the gateway sees every service."""
        for service in services:

            async def is_ready(service: str = service) -> bool:
                return (await self.readiness(service)).get("status") == "ready"

            try:
                async with asyncio.timeout(60):
                    while not await is_ready():
                        await asyncio.sleep(0.2)
            except TimeoutError:
                raise AssertionError(
                    f"{service} is not ready: {await self.readiness(service)}\n{await self.logs(service)}"
                ) from None
        async with httpx.AsyncClient(base_url=self.url, timeout=5, verify=False) as client:

            async def answers() -> bool:
                try:
                    return bool((await client.get("/readyz")).json().get("services") == 5)
                except (httpx.HTTPError, ValueError):
                    return False

            await eventually(answers, "the gateway sees every service")

    async def databases(self, to: Path) -> None:
        """Copy the services' databases from their volumes to a folder."""
        to.mkdir(exist_ok=True)
        for service in STATEFUL:
            for suffix in ("", "-wal"):
                target = to / f"{service}.sqlite{suffix}"
                target.unlink(missing_ok=True)
                await run(
                    self.engine,
                    "cp",
                    f"{await self.name(service)}:/data/{target.name}",
                    str(target),
                    status=0 if not suffix else None,
                )


@asynccontextmanager
async def containers(kind: str, folder: Path) -> AsyncGenerator[tuple[Containers, System], None]:
    """Run the whole system in containers without simulated scooters, and yield it once it is ready."""
    async with Containers(kind, folder, devices={"CALLBOARD_DEVICES__COUNT": "0"}) as stack:
        await stack.ready()
        async with httpx.AsyncClient(base_url=stack.url, timeout=35, verify=False) as client:
            yield stack, System([], client, folder / "copies")
