"""The manifests for Kubernetes on `podman kube play`, as far as that understands them: pods, claims, and ConfigMaps.

It passes over Services, policies, budgets, and scalers, and does not decode a Secret. So names are host aliases here, and the secret files
are mounted from the folder in which `callboard deploy` has written them.
"""

import secrets
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from runtime.testing import eventually
from tests.config.deploy.project import deploy, documents, ride
from tests.containers.engine import IMAGE, engine, run
from tests.project import RENTAL_SERVICES

SERVICES = ("auth", "wallet", "fleet", "rides", "notices", "devices", "gateway")


class Pods:
    """The pods of a deployment on a network of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._network = f"kube-{secrets.token_hex(4)}"
        self._played: list[str] = []
        self.port = 8000

    async def play(self, name: str, aliases: dict[str, str]) -> None:
        """Start the pod of a manifest."""
        settings = documents((self._folder / "settings.yaml").read_bytes())
        objects = documents((self._folder / f"{name}.yaml").read_bytes())
        chosen = [one for one in objects if one["kind"] in ("Deployment", "PersistentVolumeClaim", "ConfigMap")]
        for one in chosen:
            if one["kind"] == "Deployment":
                self._adapt(name, one["spec"]["template"]["spec"], aliases)
        path = self._folder / f"play-{name}.yaml"
        path.write_bytes(b"\n---\n".join(map(msgspec.yaml.encode, [*settings, *chosen])))
        self._played.append(str(path))
        await run("podman", "kube", "play", "--network", self._network, str(path))

    def _adapt(self, name: str, spec: dict[str, Any], aliases: dict[str, str]) -> None:
        spec["hostAliases"] = [{"ip": address, "hostnames": [host]} for host, address in aliases.items()]
        for volume in spec["volumes"]:
            if volume.pop("secret", None) is not None:
                volume["hostPath"] = {"path": str(self._folder / "secrets" / name), "type": "Directory"}
        for container in spec["containers"]:
            if "/eclipse-mosquitto" in container["image"]:
                container["image"] = "localhost/eclipse-mosquitto:2"
            # it would open every port of a container on this machine
            container["ports"] = [port for port in container["ports"] if port["name"] == "http"]

    async def address(self, name: str) -> str:
        template = f'{{{{(index .NetworkSettings.Networks "{self._network}").IPAddress}}}}'
        pod = (await run("podman", "pod", "inspect", f"{name}-pod-0", "--format", "{{.InfraContainerID}}")).split()[-1]
        return (await run("podman", "inspect", pod, "--format", template)).split()[-1]

    async def __aenter__(self) -> "Pods":
        await run("podman", "network", "create", self._network)
        return self

    async def __aexit__(self, *_: object) -> None:
        for path in reversed(self._played):
            await run("podman", "kube", "down", path, status=None)
        for name in SERVICES:
            await run("podman", "volume", "rm", "--force", f"{name}-data", status=None)
        await run("podman", "network", "rm", "--force", self._network, status=None)


@pytest.mark.long
@pytest.mark.skipif(engine() != "podman", reason="docker plays no manifests")
async def test_the_manifests_run_a_ride_as_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    monkeypatch.setenv("CALLBOARD_SERVICES__DEVICES__SETTINGS__COUNT", "1")
    deploy("kubernetes", tmp_path, "--image", f"localhost/{IMAGE}:latest")
    tmp_path.chmod(0o755)
    (tmp_path / "secrets").chmod(0o755)  # the containers' users read them from the host
    async with Pods(tmp_path) as pods, httpx.AsyncClient(base_url=f"http://127.0.0.1:{pods.port}", timeout=20) as client:
        await pods.play("mosquitto", {})
        aliases = {"mosquitto": await pods.address("mosquitto")}
        for name in SERVICES:
            await pods.play(name, aliases)

        async def is_ready() -> bool:
            try:
                return (await client.get("/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

        await eventually(is_ready, "the gateway knows all services", 90)
        await ride(client, (tmp_path / "secrets" / "password").read_text().strip())
        listed = await run("podman", "top", "wallet-pod-0-wallet", "user", "args")
        assert "root" not in listed, "no process of it is root's"
