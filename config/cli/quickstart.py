"""What `dev` and `up` share: users to try the system with, and the first screen that says how."""

import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import rich_click as click

from config.settings import Settings
from gateway.settings import GatewaySettings
from runtime import CallboardError
from services.auth.messages import Role
from services.auth.service import SeedUser

USERS: dict[str, Role] = {"rider@example.com": "rider", "operator@example.com": "operator", "admin@example.com": "admin"}


def with_users(settings: Settings) -> Settings:
    """The settings with users to log in as, and their password."""
    password = settings.dev.password or _kept_password(Path(settings.database.folder))
    replace = msgspec.structs.replace
    users = tuple(SeedUser(email, role, password) for email, role in USERS.items())
    return replace(
        settings,
        auth=replace(settings.auth, users=(*users, *settings.auth.users)),
        dev=replace(settings.dev, password=password),
    )


def empty(folder: Path) -> None:
    """Deletes what the services have written, and nothing else."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.name in ("password", "broker") or ".sqlite" in path.name:
            path.unlink() if not path.is_dir() else shutil.rmtree(path)


def _kept_password(folder: Path) -> str:
    """The password that an earlier start has made, so that yesterday's `curl` works today."""
    path = folder / "password"
    try:
        if path.exists():
            return path.read_text().strip()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        password = secrets.token_urlsafe(9)
        path.touch(mode=0o600)
        path.write_text(password + "\n")
    except OSError as error:
        raise CallboardError(f"{path}: {error.strerror}: choose another folder with CALLBOARD_DATABASE__FOLDER") from error
    return password


def quickstart(settings: Settings, port: int, services: Collection[str], how: str) -> None:
    """Prints the first screen.

    Args:
        services: those that run.
        how: they do, as `in one process`.
    """
    host = f"[{settings.gateway.host}]" if ":" in settings.gateway.host else settings.gateway.host
    url = f"http://{host}:{port}"
    click.echo(
        f"""
  Callboard is up, {how}.

    API        {url}
    Docs       {url}/docs
    OpenAPI    {url}/openapi.json
    Health     {url}/healthz  {url}/readyz  {url}/metrics
    Data       {settings.database.folder}/  (--fresh begins with empty databases)
"""
    )
    if "auth" in services:
        click.echo(f"  Log in as {', '.join(USERS)}\n  with the password {settings.dev.password}\n")
        there = "" if port == GatewaySettings().port else f" --url {url}"
        click.echo(f"  In a second shell, watch what passes:\n\n    {command()} tail --events --as operator@example.com{there}\n")
        click.echo("  Try this:\n")
        click.echo("\n".join(f"    {line}".rstrip() for line in _story(settings, url, services)))
    else:
        click.echo("  Nobody can log in: the auth service is not among those named.")
    click.echo("\n  Stop with Ctrl-C.\n")


def command() -> str:
    """How `callboard` was called here."""
    return os.path.relpath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "callboard" else "callboard"


def _story(settings: Settings, url: str, services: Collection[str]) -> Iterator[str]:
    """What to paste into a shell."""
    user, json = '-H "Authorization: Bearer $TOKEN"', "-H 'Content-Type: application/json'"
    login = f"""'{{"email":"rider@example.com","password":"{settings.dev.password}"}}'"""
    the_id = r"""sed 's/.*"id":"\([^"]*\)".*/\1/'"""
    yield f"""TOKEN=$(curl -s {url}/sessions {json} -d {login} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')"""
    yield f"curl -s {url}/users/me {user}"
    if "wallet" in services:
        yield f"""curl -s {url}/wallet/top-ups {user} {json} -d '{{"amount_cents":2000}}'"""
        yield f"curl -s {url}/wallet {user}"
    if "rides" in services:
        near = f"lat={settings.devices.lat}&lon={settings.devices.lon}&limit=1&radius_m=5000"
        yield ""
        yield f"curl -N {url}/live {user} &   # what happens to you, as it happens"
        yield f'SCOOTER=$(curl -s "{url}/scooters?{near}" {user} | {the_id})'
        yield f"""RIDE=$(curl -s {url}/rides {user} {json} -d "{{\\"scooter_id\\":\\"$SCOOTER\\"}}" | {the_id})"""
        yield f"curl -s {url}/rides/$RIDE {user}"
        yield f"curl -s -X POST {url}/rides/$RIDE/end {user}"
