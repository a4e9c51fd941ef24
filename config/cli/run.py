"""`callboard run`: run services in this process until a signal arrives."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import rich_click as click

from config import compose
from config.cli import candidates
from config.cli.common import loaded, run_loop, with_config
from config.cli.status import NodeFailed
from config.console_source import console_source
from config.folder_locks import databases_locked
from config.health import serve_health
from config.logs import name_node, set_up_logging
from config.settings import Settings
from config.signals import stop_signal
from config.traces import otlp_spans
from config.users import warn_if_hashing_is_weak
from gateway.console.access import ConsoleSource
from gateway.service import Gateway
from runtime import CallboardError, Node
from runtime.sockets import free_port
from runtime.telemetry import logger


@click.command("run")
@click.argument("names", metavar="[SERVICE…]", nargs=-1, shell_complete=candidates.services)
@click.option("--all", "every", is_flag=True, help="Run all services of the project, and the gateway.")
@click.option("--leash", is_flag=True, hidden=True, help="Stop when standard input ends, because the parent process is gone.")
@with_config
def run_command(names: tuple[str, ...], every: bool, leash: bool, config_file: Path | None) -> None:
    """Run one or more services in this process until SIGTERM, SIGHUP, or Ctrl-C.

    On the first signal, the services finish their work and stop. A second signal ends the process at once.

    \b
    Examples:
      callboard run wallet
      callboard run --all
    """
    given = loaded(config_file)
    settings = given.settings
    if bool(names) is every:
        raise CallboardError("callboard run: expected names of services, or --all: `callboard config show` lists them")
    names = names or tuple(compose.selected(settings, ()))
    services = compose.stateful(settings, names)
    set_up_logging(settings)
    with databases_locked(Path(settings.database.folder), services, f"callboard run {' '.join(names)}"):
        run_loop(serve(settings, names, console_source(given), leash=leash), patience=settings.node.drain_timeout)


async def serve(settings: Settings, names: tuple[str, ...], console: ConsoleSource, *, leash: bool) -> None:
    """Run a node until SIGTERM, SIGINT, or SIGHUP.

    Args:
        settings: the settings of the node and its services.
        names: the services to host.
        console: what the console shows beside the running system.
        leash: whether to stop when standard input ends, too.

    Raises:
        NodeFailed: if the node ended although it was not stopped.
    """
    stop = stop_signal()
    if leash:
        await _stop_at_end_of_input(stop)
    gateway = settings.gateway
    if gateway.port and Gateway.contract.name in compose.selected(settings, names):
        free_port(gateway.host, gateway.port, "CALLBOARD_GATEWAY__PORT", shared=gateway.share_port)  # before anything starts
    async with AsyncExitStack() as stack:
        spans = stack.enter_context(otlp_spans())
        node = compose.node(settings, names, name="-".join(names)[:40], spans=spans, console=console)
        name_node(node.id)
        await stack.enter_async_context(serve_health(settings.health, node))
        if not await _start(node, stop):
            return
        try:
            warn_if_hashing_is_weak(node)
            node.environment.log.info("%s: %s", node.id, ", ".join(compose.selected(settings, names)))
            await wait_for_stop(node, stop)
        finally:
            await node.stop()


async def _start(node: Node, stop: asyncio.Event) -> bool:
    """Start a node. Return False if `stop` was set first, for example while the node was waiting for its broker."""
    starting = asyncio.create_task(node.__aenter__())
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return False
    starting.result()
    return True


async def _stop_at_end_of_input(stop: asyncio.Event) -> None:
    class Input(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            logger("node").info("standard input has ended: the node finishes its work and stops")
            stop.set()

    await asyncio.get_running_loop().connect_read_pipe(Input, sys.stdin)


async def wait_for_stop(node: Node, stop: asyncio.Event) -> None:
    """Wait until `stop` is set, an operator drains the node, or the node has stopped.

    Raises:
        NodeFailed: if the node has stopped for another reason.
    """
    waiting = [asyncio.create_task(work) for work in (stop.wait(), node.drained(), node.wait())]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    for task in done:
        try:
            task.result()
        except CallboardError as error:
            raise NodeFailed(str(error)) from error
    if not stop.is_set() and not node.environment.drained.is_set():
        raise NodeFailed("the node has ended, although nothing has stopped it")
