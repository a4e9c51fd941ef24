"""What `dev` and `up` print once the system is running."""

import os
import shutil
import sys
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path

import rich_click as click

from config import compose
from config.cli.common import http_url
from config.settings import EXAMPLE_USERS, Settings
from config.users import has_our_auth
from gateway.settings import GatewaySettings
from runtime import StartError
from runtime.sockets import listen_address


def warn_if_public(settings: Settings) -> None:
    """Warn if a development system can be reached from other machines, because its users have a well-known role and one password."""
    host = settings.gateway.host
    try:
        local = ip_address(listen_address(host, "CALLBOARD_GATEWAY__HOST")).is_loopback
    except StartError:
        local = False
    if not local:
        click.echo(
            f"callboard: warning: gateway.host={host} lets other machines reach this development system, its admin included: "
            "127.0.0.1 does not",
            err=True,
        )


def empty(folder: Path) -> None:
    """Delete the files that the services and the private broker have written, and no others."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.name in ("password", "broker") or path.name.startswith("gateway.routes.") or ".sqlite" in path.name:
            path.unlink() if not path.is_dir() else shutil.rmtree(path)


def quickstart(settings: Settings, port: int, services: Collection[str], how: str, *, console: bool) -> None:
    """Print where the system can be reached, how to log in, and commands to try.

    Args:
        settings: the settings that the system runs with.
        port: the port of the gateway.
        services: the names of the running services.
        how: how they run, such as `in one process`.
        console: whether there is a console.
    """
    url = http_url(settings.gateway.host, port)
    click.echo(
        f"""
  Callboard is up, {how}.

    API        {url}
    Docs       {url}/docs{f"{chr(10)}    Console    {url}/console" if console else ""}
    OpenAPI    {url}/openapi.json
    Health     {url}/healthz  {url}/readyz  {url}/metrics
    Data       {settings.database.folder}/  (start with --fresh to empty it)
"""
    )
    if "auth" in services and has_our_auth(settings):
        click.echo(f"  Log in as {', '.join(EXAMPLE_USERS)}\n  with the password {settings.dev.password}\n")
        option = "" if port == GatewaySettings().port else f" --url {url}"
        click.echo(f"  In a second shell, watch the events:\n\n    {command()} tail --events --as operator@example.com{option}\n")
        click.echo("  Try this:\n")
        click.echo("\n".join(f"    {line}".rstrip() for line in _commands(settings, url, services)))
    else:
        if "auth" not in services:
            click.echo(
                "  Nobody can log in, because no auth service is running. The commands here can act as any user nevertheless."
            )
        click.echo(f"  In a second shell, list the requests, make one, and watch the events:\n\n    {command()} call")
        click.echo(f"    {command()} call REQUEST FIELD=VALUE --as u1 --role member\n    {command()} tail --events")
    click.echo("\n  Stop with Ctrl-C.\n")


def command() -> str:
    """Return the command by which `callboard` was called, relative to the working directory."""
    return os.path.relpath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "callboard" else "callboard"


def _commands(settings: Settings, url: str, services: Collection[str]) -> Iterator[str]:
    """Yield shell commands that log in and rent a scooter."""
    user, json = f'-H "Authorization: {settings.identity.scheme} $TOKEN"', "-H 'Content-Type: application/json'"
    login = f"""'{{"email":"rider@example.com","password":"{settings.dev.password}"}}'"""
    the_id = r"""sed 's/.*"id":"\([^"]*\)".*/\1/'"""
    yield f"""TOKEN=$(curl -s {url}/sessions {json} -d {login} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')"""
    yield f"curl -s {url}/users/me {user}"
    yield f"{command()} call   # the requests that can be made"
    if "wallet" in services:
        yield f"""curl -s {url}/wallet/top-ups {user} {json} -d '{{"amount_cents":2000}}'"""
        yield f"curl -s {url}/wallet {user}"
    if {"rides", "fleet", "devices"} <= {*services}:
        devices = compose.own_settings(settings, "devices")
        near = f"lat={devices.lat}&lon={devices.lon}&limit=1&radius_m=5000"
        yield ""
        yield f"curl -N {url}/live {user} &   # your live events"
        yield f'SCOOTER=$(curl -s "{url}/scooters?{near}" {user} | {the_id})'
        yield f"""RIDE=$(curl -s {url}/rides {user} {json} -d "{{\\"scooter_id\\":\\"$SCOOTER\\"}}" | {the_id})"""
        yield f"curl -s {url}/rides/$RIDE {user}"
        yield f"curl -s -X POST {url}/rides/$RIDE/end {user}"
