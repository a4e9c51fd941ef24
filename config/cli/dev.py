"""`callboard dev`: the whole system in one process, with users to try it with, started anew when code changes."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import msgspec
import rich_click as click

from config import compose
from config.cli.common import loaded, run_loop, set_up_logging, with_config
from config.cli.run import until_told
from config.settings import Settings
from gateway.service import Gateway, free_port
from runtime import CallboardError
from services.auth.messages import Role
from services.auth.service import Auth, SeedUser

_USERS: dict[str, Role] = {"rider@example.com": "rider", "operator@example.com": "operator", "admin@example.com": "admin"}
_CHILD = "_CALLBOARD_DEV_CHILD"
_WATCHED = ("runtime", "services", "transports", "gateway", "config")


@click.command("dev")
@click.argument("names", metavar="[SERVICE…]", nargs=-1)
@click.option("--fresh", is_flag=True, help="Begin with empty databases.")
@click.option("--debug", is_flag=True, help="For a debugger: deadlines do not run, and nothing restarts.")
@click.option("--no-reload", is_flag=True, help="Do not start anew when code changes.")
@with_config
def dev_command(names: tuple[str, ...], fresh: bool, debug: bool, no_reload: bool, config_file: Path | None) -> None:
    """Run everything (or the services named) in one process. Stop it with Ctrl-C."""
    if os.environ.get(_CHILD) is None and not debug and not no_reload:
        sys.exit(_supervise())
    settings = _prepared(loaded(config_file).settings, fresh and os.environ.get(_CHILD) != "again", debug)
    set_up_logging(settings)
    run_loop(_serve(settings, names), debug=debug)


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


async def _serve(settings: Settings, names: tuple[str, ...]) -> None:
    async with compose.node(settings, names, name="dev") as node:
        gateway = node.service(Gateway)
        if gateway is not None:
            _welcome(settings, gateway.port, users=node.service(Auth) is not None)
        await until_told(node)


def _welcome(settings: Settings, port: int, users: bool) -> None:
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
    if users:
        login = f"""'{{"email":"rider@example.com","password":"{settings.dev.password}"}}'"""
        click.echo(
            f"""  Log in as {", ".join(_USERS)}
  with the password {settings.dev.password}

  Try this:

    TOKEN=$(curl -s {url}/sessions -H 'Content-Type: application/json' -d {login} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')
    curl -s {url}/wallet/top-ups -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"amount_cents":2000}}'
    curl -s {url}/wallet -H "Authorization: Bearer $TOKEN"
"""
        )
    click.echo("  Stop with Ctrl-C.\n")


def _supervise() -> int:
    """Runs `dev` in a child process, and starts it anew when code changes; also after a syntax error."""
    from watchfiles import PythonFilter, watch

    folders = [path for path in _code_folders() if path.exists()]
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    generation = "first"
    while True:
        child = subprocess.Popen(_command(), env={**os.environ, _CHILD: generation})
        generation = "again"
        for changes in watch(
            *folders,
            watch_filter=PythonFilter(extra_extensions=(".sql", ".toml")),
            yield_on_timeout=True,
            rust_timeout=200,
            raise_interrupt=False,
        ):
            if stopping:
                return _end(child)
            if changes:
                click.echo(f"callboard: {Path(next(iter(changes))[1]).name} changed, starting anew")
                break
            code = child.poll()
            if code in (0, 2):  # what a change of code cannot mend
                return code
            if code is not None and child.returncode is not None and not getattr(child, "told", False):
                click.echo("callboard: waiting for a change of code", err=True)
                child.told = True  # type: ignore[attr-defined]
        _end(child)


def _command() -> list[str]:
    return [sys.executable, "-m", "config.cli", *sys.argv[1:]]


def _code_folders() -> list[Path]:
    root = Path(__file__).parent.parent.parent
    return [root / name for name in _WATCHED]


def _end(child: "subprocess.Popen[bytes]") -> int:
    """Stops the child as Ctrl-C would, and gives its exit status."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return 0
