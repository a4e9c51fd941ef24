"""Options and helpers that several commands share."""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from config.cli.status import NodeFailed
from config.load import Loaded, load
from runtime import CallboardError
from runtime.sockets import without_brackets
from runtime.source import innermost

F = TypeVar("F", bound=Callable[..., Any])

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), in bytes: what may be free at the heap's end, and from which size on memory is taken outside of the heap."""


def with_config(function: F) -> F:
    """Add the option `--config` to a command."""
    option = click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="The TOML file to read settings from (default: callboard.toml).",
    )
    return option(function)


def with_json(function: F) -> F:
    """Add the option `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")(function)


def with_watch(function: F) -> F:
    """Add the option `--watch` to a command."""
    return click.option(
        "--watch",
        "watched",
        is_flag=True,
        help="Show it again every second until Ctrl-C. Without a terminal, show what has changed; with --json, one document per second.",
    )(function)


def runs_subcommand(ctx: click.Context) -> bool:
    """Return whether a subcommand of a group runs, instead of the group itself.

    Raises:
        CallboardError: if there are options before it, which would not reach it.
    """
    name = ctx.invoked_subcommand
    if name is None:
        return False
    sources = [ctx.get_parameter_source(parameter) for parameter in ctx.params]
    if any(source is not None and source.name == "COMMANDLINE" for source in sources):
        raise CallboardError(f"options belong behind {name}: {ctx.command_path} {name} … --url …")
    return True


def loaded(config_file: Path | None) -> Loaded:
    """Load the settings from a file and the environment."""
    return load(config_file, os.environ)


def http_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches an HTTP server that listens on a host name or an IP address."""
    host = without_brackets(host)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # an address to connect to, not to listen on
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run_loop(work: Coroutine[Any, Any, T], *, debug: bool = False, patience: float = 5.0) -> T:
    """Run a coroutine on uvloop, or on asyncio's own event loop if `debug` is set or uvloop is not installed.

    Args:
        patience: the seconds that threads may take to end after it.

    Raises:
        NodeFailed: if a task or a callback of a service has raised SystemExit, which must not look like an orderly stop.
    """
    from config import ending, signals

    _raise_file_limit()
    _collect_less_often()
    _keep_freed_memory()
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    if not debug:
        with suppress(ImportError):
            import uvloop

            new_loop = uvloop.new_event_loop
    try:
        result = ending.run(work, new_loop, debug=debug, patience=patience)
    except SystemExit as error:
        where = innermost(error.__traceback__)
        raise NodeFailed(f"{where}: {error!r} in a task that no handler awaits has ended the node") from error
    except BrokenPipeError:
        signals.output_gone(sys.stdout, "standard output")
        raise NodeFailed(signals.failure or "") from None
    if signals.failure is not None:
        raise NodeFailed(signals.failure)
    return result


def _collect_less_often() -> None:
    """Leave what is loaded out of garbage collection, and collect the rest less often.

    Python collects after every 700 objects that it has made and not freed. With many messages in progress that is all the
    time, and each collection looks at all of these messages.
    """
    gc.freeze()
    gc.set_threshold(20_000, 5, 5)


def _keep_freed_memory() -> None:
    """Let the GNU C library keep up to 16 MiB of freed memory, instead of returning it to the system.

    Otherwise each message of more than 128 KiB gets new pages for each of its copies, which the system has to clear. That took more than half
    of the time of a message of 1 MB.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 4 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 16 * 1024 * 1024)


def _raise_file_limit() -> None:
    """Raise the limit of open files, and thus of connections, as far as the system allows. It often starts at 1,024."""
    try:
        import resource
    except ImportError:  # the platform has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
