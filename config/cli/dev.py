"""`callboard dev`: run the whole system in one process, with example users, and restart it when code changes."""

import asyncio
import os
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from config import compose
from config.cli import candidates, reload
from config.cli.common import http_url, loaded, run_loop, with_config
from config.cli.output import print_error, progress
from config.cli.quickstart import empty, quickstart, warn_if_public
from config.cli.run import wait_for_stop
from config.cli.status import NodeFailed
from config.cli.watched_files import note_files
from config.console import with_console
from config.console_source import console_source
from config.folder_locks import databases_locked, url_published
from config.load import Loaded
from config.logs import name_node, set_up_logging
from config.project import BrokenService
from config.settings import Settings
from config.signals import stop_signal
from config.traces import otlp_spans
from config.users import warn_if_hashing_is_weak, with_users
from gateway.service import Gateway
from runtime import CallboardError, Crashed, DefinitionError
from runtime.sockets import any_free_port, free_port
from runtime.storage.migrations import MigrationError

_PORT = "_CALLBOARD_DEV_PORT"
_BLOCKED_AFTER = 0.5
"""How long a handler may block the event loop before the log names it, in seconds, unless the settings say otherwise."""
_FIXED_BY_CODE = (DefinitionError, MigrationError, Crashed, NodeFailed, BrokenService)
"""Those errors of ours that a change of code may fix. For the others, waiting for one is pointless."""


@click.command("dev")
@click.argument("names", metavar="[SERVICE…]", nargs=-1, shell_complete=candidates.services)
@click.option("--fresh", is_flag=True, help="Start with empty databases.")
@click.option("--debug", is_flag=True, help="Run under a debugger: no deadlines, and no restart when code changes.")
@click.option("--no-reload", is_flag=True, help="Do not restart when code changes.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port of the gateway; 0 takes a free one.")
@with_config
def dev_command(
    names: tuple[str, ...], fresh: bool, debug: bool, no_reload: bool, port: int | None, config_file: Path | None
) -> None:
    """Run the whole system, or the named services, in one process. Stop with Ctrl-C.

    Once the system is running, prints its address, users to log in as, and commands to try. Restarts when code changes,
    a setting in a file, or a data file that a service has read.

    \b
    Examples:
      callboard dev --fresh
      callboard dev rides wallet gateway --port 9000
    """
    if not debug and not no_reload:
        note_files()
    try:
        given = loaded(config_file)
    except CallboardError as error:
        if not reload.is_restart():
            raise
        print_error(error)  # the settings have changed while it ran
        reload.wait_and_restart()
        return
    settings = given.settings
    if port is not None:
        port = port or int(os.environ.setdefault(_PORT, str(any_free_port())))  # the same one after a restart
        settings = msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, port=port))
    watched = [] if debug or no_reload else reload.folders([entry.class_ for entry in settings.services.values()])
    set_up_logging(settings)
    warn_if_public(settings)
    prepare = partial(_prepare, settings, names, fresh and not reload.is_restart(), debug)
    if run_loop(_serve(given, settings, prepare, names, watched), debug=debug, patience=settings.node.drain_timeout):
        reload.restart()


def _prepare(settings: Settings, names: tuple[str, ...], fresh: bool, debug: bool) -> Settings:
    """Return the settings that `dev` runs with, including the example users. Empties the databases first if `fresh` is set.

    Commits survive the end of the process, but not a power failure.
    """
    if settings.gateway.port:
        free_port(settings.gateway.host, settings.gateway.port, "CALLBOARD_GATEWAY__PORT")
    if fresh:
        empty(Path(settings.database.folder))
    replace = msgspec.structs.replace
    return replace(
        with_console(with_users(settings)),
        database=replace(settings.database, durable=False),
        gateway=replace(settings.gateway, expects=compose.expected(settings, names), drain_delay=0, metrics="public"),
        node=replace(
            settings.node,
            deadlines=settings.node.deadlines and not debug,
            blocked_after=0.0 if debug else settings.node.blocked_after or _BLOCKED_AFTER,
        ),
    )


async def _serve(
    given: Loaded, settings: Settings, prepare: Callable[[], Settings], names: tuple[str, ...], watched: list[Path]
) -> bool:
    """Run the system until a stop signal arrives (return False) or code changes (return True)."""
    stop = stop_signal()
    async with reload.watching(watched) as changed:
        try:
            with databases_locked(Path(settings.database.folder), compose.stateful(settings, names), "callboard dev"):
                await _run(given, prepare(), names, stop, changed)
        except Exception as error:
            fixed_by_code = not isinstance(error, CallboardError) or isinstance(error, _FIXED_BY_CODE)
            if not watched or (not fixed_by_code and not reload.is_restart()):
                raise
            if isinstance(error, CallboardError):
                print_error(error)
            else:
                traceback.print_exc()
            reload.print_waiting()
            await _wait_for_either(changed, asyncio.create_task(stop.wait()))
        return changed.done()


async def _run(
    given: Loaded, settings: Settings, names: tuple[str, ...], stop: asyncio.Event, changed: "asyncio.Task[None]"
) -> None:
    async with AsyncExitStack() as stack:
        with progress("starting the services"):
            spans = stack.enter_context(otlp_spans())
            console = console_source(given, settings)
            node = await stack.enter_async_context(compose.node(settings, names, name="dev", spans=spans, console=console))
        name_node(node.id)
        warn_if_hashing_is_weak(node)
        gateway = node.service(Gateway)
        if gateway is not None:
            url = http_url(settings.gateway.host, gateway.port)
            stack.enter_context(url_published(Path(settings.database.folder), url))
        if gateway is None:
            click.echo(f"\n  Running {', '.join(compose.selected(settings, names))} without a gateway. Stop with Ctrl-C.\n")
        elif reload.is_restart():
            click.echo(f"callboard: restarted, on port {gateway.port}")
        else:
            quickstart(settings, gateway.port, compose.selected(settings, names), "in one process", console=True)
        await _wait_for_either(changed, asyncio.create_task(wait_for_stop(node, stop)))


async def _wait_for_either(changed: "asyncio.Task[None]", other: "asyncio.Task[Any]") -> None:
    """Wait until code has changed or another task has ended. If that task failed, raise its exception."""
    try:
        await asyncio.wait((changed, other), return_when=asyncio.FIRST_COMPLETED)
        for task in (changed, other):
            if task.done():
                task.result()
    finally:
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
