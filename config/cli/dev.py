"""`callboard dev`: the whole system in one process, with users to try it with, started anew when code changes."""

import asyncio
import os
import secrets
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import rich_click as click

from config import compose
from config.cli import reload
from config.cli.common import loaded, patience, run_loop, set_up_logging, with_config
from config.cli.run import told_to_stop, until_told
from config.settings import Settings
from gateway.service import Gateway, PortTaken, free_port
from gateway.settings import GatewaySettings
from runtime import CallboardError, DatabaseError, Node
from services.auth.messages import Role
from services.auth.service import Auth, SeedUser
from services.rides.service import Rides
from services.wallet.service import Wallet

_HOPELESS = (PortTaken, DatabaseError, compose.UnknownService)
"""What a change of code does not mend."""

_USERS: dict[str, Role] = {"rider@example.com": "rider", "operator@example.com": "operator", "admin@example.com": "admin"}


@click.command("dev")
@click.argument("names", metavar="[SERVICE…]", nargs=-1)
@click.option("--fresh", is_flag=True, help="Begin with empty databases.")
@click.option("--debug", is_flag=True, help="For a debugger: deadlines do not run, and nothing restarts.")
@click.option("--no-reload", is_flag=True, help="Do not start anew when code changes.")
@with_config
def dev_command(names: tuple[str, ...], fresh: bool, debug: bool, no_reload: bool, config_file: Path | None) -> None:
    """Run everything (or the services named) in one process. Stop it with Ctrl-C."""
    settings = loaded(config_file).settings
    watched = [] if debug or no_reload else reload.folders(settings.services)
    try:
        settings = _prepared(settings, fresh and not reload.is_again(), debug)
        set_up_logging(settings)
        again = run_loop(_serve(settings, names, watched), debug=debug)
    except Exception as error:
        if not watched or (isinstance(error, _HOPELESS) and not reload.is_again()):
            raise
        if isinstance(error, CallboardError):
            click.echo(f"callboard: {error}", err=True)
        else:
            traceback.print_exc()
        reload.wait_and_start_anew(watched)
    else:
        if again:
            reload.start_anew()


def _prepared(settings: Settings, fresh: bool, debug: bool) -> Settings:
    """The settings that `dev` runs with: users to log in as, and commits that survive the process if not the power."""
    if settings.gateway.port:
        free_port(settings.gateway.host, settings.gateway.port)
    folder = Path(settings.database.folder)
    if fresh and folder.exists():
        _empty(folder)
    password = settings.dev.password or _kept_password(folder)
    replace = msgspec.structs.replace
    users = tuple(SeedUser(email, role, password) for email, role in _USERS.items())
    return replace(
        settings,
        auth=replace(settings.auth, users=(*settings.auth.users, *users)),
        database=replace(settings.database, durable=False),
        node=replace(settings.node, deadlines=settings.node.deadlines and not debug),
        dev=replace(settings.dev, password=password),
    )


def _empty(folder: Path) -> None:
    """Deletes what `dev` has written, and nothing else."""
    for path in folder.iterdir():
        if path.name == "password" or ".sqlite" in path.name:
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


async def _serve(settings: Settings, names: tuple[str, ...], watched: list[Path]) -> bool:
    """Runs the system until it is told to stop (False) or its code has changed (True)."""
    told = told_to_stop()
    async with AsyncExitStack() as stack:
        with patience("starting the services"):
            node = await stack.enter_async_context(compose.node(settings, names, name="dev"))
        gateway = node.service(Gateway)
        if gateway is None:
            click.echo(f"\n  {', '.join(compose.chosen(settings, names))} run without a gateway. Stop with Ctrl-C.\n")
        elif reload.is_again():
            click.echo(f"callboard: up again, on port {gateway.port}")
        else:
            _welcome(settings, gateway.port, node)
        waiting = {asyncio.create_task(until_told(node, told))}
        if watched:
            waiting.add(asyncio.create_task(reload.changed(watched), name="changed"))
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()
        return any(task.get_name() == "changed" for task in done)


def _welcome(settings: Settings, port: int, node: Node) -> None:
    host = f"[{settings.gateway.host}]" if ":" in settings.gateway.host else settings.gateway.host
    url = f"http://{host}:{port}"
    click.echo(
        f"""
  Callboard is up, in one process.

    API        {url}
    Docs       {url}/docs
    OpenAPI    {url}/openapi.json
    Health     {url}/healthz  {url}/readyz  {url}/metrics
    Data       {settings.database.folder}/  (--fresh begins with empty databases)
"""
    )
    if node.service(Auth) is not None:
        click.echo(f"  Log in as {', '.join(_USERS)}\n  with the password {settings.dev.password}\n")
        command = os.path.relpath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "callboard" else "callboard"
        there = "" if port == GatewaySettings().port else f" --url {url}"
        click.echo(f"  In a second shell, watch what passes:\n\n    {command} tail --events --as operator@example.com{there}\n")
        click.echo("  Try this:\n")
        click.echo("\n".join(f"    {line}".rstrip() for line in _story(settings, url, node)))
    else:
        click.echo("  Nobody can log in: the auth service is not among those named.")
    click.echo("\n  Stop with Ctrl-C.\n")


def _story(settings: Settings, url: str, node: Node) -> Iterator[str]:
    """What to paste into a shell."""
    user, json = '-H "Authorization: Bearer $TOKEN"', "-H 'Content-Type: application/json'"
    login = f"""'{{"email":"rider@example.com","password":"{settings.dev.password}"}}'"""
    the_id = r"""sed 's/.*"id":"\([^"]*\)".*/\1/'"""
    yield f"""TOKEN=$(curl -s {url}/sessions {json} -d {login} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')"""
    yield f"curl -s {url}/users/me {user}"
    if node.service(Wallet) is not None:
        yield f"""curl -s {url}/wallet/top-ups {user} {json} -d '{{"amount_cents":2000}}'"""
        yield f"curl -s {url}/wallet {user}"
    if node.service(Rides) is not None:
        near = f"lat={settings.devices.lat}&lon={settings.devices.lon}&limit=1&radius_m=5000"
        yield ""
        yield f"curl -N {url}/live {user} &   # what happens to you, as it happens"
        yield f'SCOOTER=$(curl -s "{url}/scooters?{near}" {user} | {the_id})'
        yield f"""RIDE=$(curl -s {url}/rides {user} {json} -d "{{\\"scooter_id\\":\\"$SCOOTER\\"}}" | {the_id})"""
        yield f"curl -s {url}/rides/$RIDE {user}"
        yield f"curl -s -X POST {url}/rides/$RIDE/end {user}"
