"""Deployments of the scooter rental, as tests write and read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner

from config.cli.deploy import deploy_command
from runtime import CallboardError

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
