"""`callboard run`: services in this process, until a signal."""

import asyncio
import signal
import sys
from pathlib import Path

import rich_click as click

from config import compose
from config.cli.common import loaded, run_loop, set_up_logging, with_config
from config.health import healthy
from config.settings import Settings
from runtime import Node


@click.command("run")
@click.argument("names", metavar="SERVICE…", nargs=-1, required=True)
@click.option("--leash", is_flag=True, hidden=True, help="Stop when standard input ends: whoever started this is gone.")
@with_config
def run_command(names: tuple[str, ...], leash: bool, config_file: Path | None) -> None:
    """Run one or more services in this process until SIGTERM or Ctrl-C."""
    settings = loaded(config_file).settings
    compose.chosen(settings, names)
    set_up_logging(settings)
    run_loop(serve(settings, names, leash=leash))


async def serve(settings: Settings, names: tuple[str, ...], *, leash: bool) -> None:
    """Runs a node until it is told to stop.

    Args:
        leash: the end of standard input tells it, too.

    Raises:
        Crashed: a service failed too often.
    """
    told = told_to_stop()
    if leash:
        await _stop_at_end_of_input(told)
    node = compose.node(settings, names, name="-".join(names)[:40])
    async with healthy(settings.health, node):
        if not await started(node, told):
            return
        try:
            node.environment.log.info("%s: %s", node.id, ", ".join(compose.chosen(settings, names)))
            await until_told(node, told)
        finally:
            await node.stop()


async def started(node: Node, told: asyncio.Event) -> bool:
    """Starts a node; says whether it has before it was told to stop, as when its broker is not there."""
    starting = asyncio.create_task(node.__aenter__())
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return False
    starting.result()
    return True


async def _stop_at_end_of_input(told: asyncio.Event) -> None:
    class Input(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            told.set()

    await asyncio.get_running_loop().connect_read_pipe(Input, sys.stdin)


def told_to_stop() -> asyncio.Event:
    """Set at SIGTERM or SIGINT, from now on. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def stop() -> None:
        told.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return told


async def until_told(node: Node, told: asyncio.Event) -> None:
    """Returns when it is time to stop.

    Raises:
        Crashed: a service of the node failed too often.
    """
    waiting = [asyncio.create_task(told.wait()), asyncio.create_task(node.wait())]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    for task in done:
        task.result()
