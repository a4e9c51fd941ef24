"""`callboard deploy`: write what runs the services of a project on Kubernetes, with compose, or under systemd."""

import importlib
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import rich_click as click

from config import compose as composition
from config.cli.common import F, loaded, with_config
from config.deploy import compose, kubernetes, systemd
from config.deploy.plan import Plan, make_plan
from runtime import CallboardError
from transports.mqtt.access import dynamic_security, emqx_rules

importlib.import_module("yaml")  # msgspec needs it to write YAML, and says so too late


@click.group("deploy")
def deploy_command() -> None:
    """Write what runs the services of this project elsewhere. Everything is derived from the project and its settings.

    The transport is the one in the settings, or else MQTT with a broker that is part of the deployment. With
    CALLBOARD_DATABASE__URL, each service gets a role and a schema in that PostgreSQL database, and several instances.
    Otherwise each has a file, and one instance.

    Certificates, keys, and passwords are created in the folder `secrets` of the output, and kept when the command is run
    again. Do not commit them.

    \b
    Examples:
      callboard deploy compose
      callboard deploy kubernetes --image registry.example/rental:7 --output k8s
    """


def _options(target: str) -> Callable[[F], F]:
    def add(function: F) -> F:
        output = click.option(
            "--output",
            type=click.Path(path_type=Path),
            default=Path("deploy") / target,
            show_default=True,
            help="The folder to write to.",
        )
        return output(with_config(function))

    return add


_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*")


def _checked_image(_: click.Context, __: click.Parameter, value: str) -> str:
    if not _IMAGE.fullmatch(value):
        raise CallboardError(f"--image {value}: expected the name of an image, such as registry.example/rental:7")
    return value


_image = click.option(
    "--image", default="callboard", show_default=True, callback=_checked_image, help="The container image of the services."
)


@deploy_command.command("kubernetes")
@_options("kubernetes")
@_image
@click.option("--namespace", default="callboard", show_default=True, help="The namespace of all objects.")
def kubernetes_command(output: Path, config_file: Path | None, image: str, namespace: str) -> None:
    """Write manifests for Kubernetes: apply them with `kubectl apply --kustomize DIR`.

    \b
    Examples:
      callboard deploy kubernetes --image registry.example/rental:7 --output k8s
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise CallboardError(f"--namespace {namespace}: expected lower-case letters, digits, and `-`, such as rental")
    plan = _plan(config_file, output, image)
    _write(plan, output, kubernetes.files(plan, namespace), config_file)
    _say(plan, output, f"kubectl apply --kustomize {shlex.quote(str(output))}")


@deploy_command.command("compose")
@_options("compose")
@_image
def compose_command(output: Path, config_file: Path | None, image: str) -> None:
    """Write `compose.yaml`, for docker or podman, with a balancer in front of several gateways.

    \b
    Examples:
      callboard deploy compose --output compose
    """
    plan = _plan(config_file, output, image)
    _write(plan, output, compose.files(plan), config_file)
    _say(plan, output, f"docker compose --file {shlex.quote(str(output / 'compose.yaml'))} up")


@deploy_command.command("systemd")
@_options("systemd")
def systemd_command(output: Path, config_file: Path | None) -> None:
    """Write units for systemd, for one machine on which /opt/callboard/bin/callboard is installed.

    \b
    Examples:
      callboard deploy systemd --output units
    """
    plan = _plan(config_file, output, "")
    _write(plan, output, systemd.files(plan), config_file)
    _say(plan, output, f"cd {shlex.quote(str(output))} && sudo sh install.sh && sudo systemctl start callboard.target")


def _plan(config_file: Path | None, output: Path, image: str) -> Plan:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallboardError(f"{output}: cannot be made: {error.strerror}: choose another folder with --output") from error
    try:
        return make_plan(loaded(config_file), output, image)
    except OSError as error:
        raise CallboardError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _write(plan: Plan, output: Path, files: Mapping[str, bytes], config_file: Path | None) -> None:
    found = dict(files)
    if plan.broker_url is not None:
        definitions = composition.definitions(loaded(config_file).settings)
        passwords = {
            one.name: (plan.secrets / one.name / "mqtt-password").read_text(encoding="utf-8").strip() for one in plan.services
        }
        found["dynamic-security.json"] = dynamic_security(definitions, plan.namespace, passwords).encode()
        found["emqx-acl.conf"] = emqx_rules(definitions, plan.namespace).encode()
    found[".gitignore"] = b"secrets/\nsecrets.yaml\ndynamic-security.json\npostgresql-roles.sql\n"
    try:
        for name, content in found.items():
            path = output / name
            path.unlink(missing_ok=True)
            path.touch(mode=0o600 if name in ("secrets.yaml", "dynamic-security.json") else 0o644)
            path.write_bytes(content)
    except OSError as error:
        raise CallboardError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _say(plan: Plan, output: Path, command: str) -> None:
    click.echo(
        f"{output}: written for {', '.join(one.name for one in plan.services)}. Certificates, keys, and passwords are in {plan.secrets}."
    )
    if plan.needs_postgres:
        click.echo(
            f"First create the roles, as the owner of the database: psql --file {shlex.quote(str(output / 'postgresql-roles.sql'))} URL"
        )
    click.echo(f"Then: {command}" if plan.needs_postgres else f"Start it: {command}")
