"""Deployments of the scooter rental, as tests write and read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from click.testing import CliRunner

from config.cli.deploy import deploy_command
from runtime import CallboardError
from runtime.testing import eventually

Object = dict[str, Any]


def deploy(target: str, folder: Path, *arguments: str) -> str:
    """Write a deployment to a folder. Return what the command says."""
    result = CliRunner().invoke(deploy_command, [target, "--output", str(folder), *arguments])
    if isinstance(result.exception, CallboardError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def objects(folder: Path) -> list[Object]:
    """Return the Kubernetes objects in a folder, as `kubectl apply --kustomize` finds them."""
    listed = msgspec.yaml.decode((folder / "kustomization.yaml").read_bytes())["resources"]
    return [one for name in listed for one in documents((folder / name).read_bytes())]


def documents(text: bytes) -> list[Object]:
    """Return the documents of a YAML file."""
    return [msgspec.yaml.decode(part) for part in text.split(b"\n---\n")]


def of_kind(found: list[Object], *kinds: str) -> dict[str, Object]:
    """Return the objects of some kinds, by name."""
    return {one["metadata"]["name"]: one for one in found if one["kind"] in kinds}


def pods(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield the name and the template of all that makes pods."""
    for one in found:
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]


async def ride(client: httpx.AsyncClient, password: str) -> None:
    """Ride a simulated scooter through a gateway, and wait until the ride is paid."""
    login = await client.post("/sessions", json={"email": "rider@example.com", "password": password})
    assert login.status_code == 201, login.text
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
    assert (await client.post("/wallet/top-ups", json={"amount_cents": 5000}, headers=headers)).status_code == 201

    async def has_ridden() -> bool:
        found = (await client.get("/scooters?lat=52.52&lon=13.405&radius_m=10000", headers=headers)).json()["items"]
        if not found:
            return False
        started = await client.post("/rides", json={"scooter_id": found[0]["id"]}, headers=headers)
        if started.status_code != 201:
            return False
        return (await client.post(f"/rides/{started.json()['id']}/end", headers=headers)).status_code == 200

    async def is_paid() -> bool:
        entries = (await client.get("/wallet/entries", headers=headers)).json()["items"]
        return any(entry["kind"] == "ride" for entry in entries)

    await eventually(has_ridden, "a ride on the simulated scooter", 60)
    await eventually(is_paid, "the events have arrived", 60)
