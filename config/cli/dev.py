"""`callboard dev`: the whole system in one process, with users to try it with, started anew when code changes."""

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from config import compose
from config.cli import reload
from config.cli.common import loaded, patience, run_loop, set_up_logging, with_config
from config.cli.quickstart import empty, quickstart, with_users
from config.cli.run import told_to_stop, until_told
from config.settings import Settings
from gateway.service import Gateway
from runtime import CallboardError, DatabaseError
from runtime.sockets import PortTaken, free_port

_HOPELESS = (PortTaken, DatabaseError, compose.UnknownService)
"""What a change of code does not mend."""


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
    set_up_logging(settings)
    prepared = partial(_prepared, settings, fresh and not reload.is_again(), debug)
    if run_loop(_serve(prepared, names, watched), debug=debug):
        reload.start_anew()


def _prepared(settings: Settings, fresh: bool, debug: bool) -> Settings:
    """The settings that `dev` runs with: users to log in as, and commits that survive the process if not the power."""
    if settings.gateway.port:
        free_port(settings.gateway.host, settings.gateway.port, "CALLBOARD_GATEWAY__PORT")
    if fresh:
        empty(Path(settings.database.folder))
    replace = msgspec.structs.replace
    return replace(
        with_users(settings),
        database=replace(settings.database, durable=False),
        node=replace(settings.node, deadlines=settings.node.deadlines and not debug),
    )


async def _serve(prepared: Callable[[], Settings], names: tuple[str, ...], watched: list[Path]) -> bool:
    """Runs the system until it is told to stop (False) or its code has changed (True)."""
    told = told_to_stop()
    async with reload.watching(watched) as changed:
        try:
            await _run(prepared(), names, told, changed)
        except Exception as error:
            if not watched or (isinstance(error, _HOPELESS) and not reload.is_again()):
                raise
            if isinstance(error, CallboardError):
                click.echo(f"callboard: {error}", err=True)
            else:
                traceback.print_exc()
            reload.say_what_is_waited_for()
            await _first(changed, asyncio.create_task(told.wait()))
        return changed.done()


async def _run(settings: Settings, names: tuple[str, ...], told: asyncio.Event, changed: "asyncio.Task[None]") -> None:
    async with AsyncExitStack() as stack:
        with patience("starting the services"):
            node = await stack.enter_async_context(compose.node(settings, names, name="dev"))
        gateway = node.service(Gateway)
        if gateway is None:
            click.echo(f"\n  {', '.join(compose.chosen(settings, names))} run without a gateway. Stop with Ctrl-C.\n")
        elif reload.is_again():
            click.echo(f"callboard: up again, on port {gateway.port}")
        else:
            quickstart(settings, gateway.port, compose.chosen(settings, names), "in one process")
        await _first(changed, asyncio.create_task(until_told(node, told)))


async def _first(changed: "asyncio.Task[None]", other: "asyncio.Task[Any]") -> None:
    """Waits for a change of code, or for something else. Raises what that raises."""
    try:
        await asyncio.wait((changed, other), return_when=asyncio.FIRST_COMPLETED)
        for task in (changed, other):
            if task.done():
                task.result()
    finally:
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
