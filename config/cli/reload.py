"""Restart when code changes. The process replaces itself, so it keeps its process id, terminal, and debugger."""

import asyncio
import os
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import rich_click as click
from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType]

from config import PACKAGES
from config.cli.watched_files import CODE, Filter, changed, elsewhere
from config.packages import ROOT, own_command, own_path

_RESTARTED_AT = "_CALLBOARD_DEV_AGAIN"
"""The environment variable with the Unix time at which this process replaced an earlier one."""


def is_restart() -> bool:
    """Return whether this process has replaced an earlier one."""
    return _RESTARTED_AT in os.environ


def folders(services: Sequence[str]) -> list[Path]:
    """Return the folders and files with code: those of the project and of the user's services. Their data files count, too.

    Args:
        services: the user's services, as `package.module:Class`.
    """
    packages = {Path.cwd() / path.partition(":")[0].split(".")[0] for path in services}
    files = {package.with_suffix(".py") for package in packages}
    return [path for path in {*(ROOT / name for name in PACKAGES), *packages, *files} if path.exists()]


@asynccontextmanager
async def watching(watched: Sequence[Path]) -> AsyncGenerator["asyncio.Task[None]", None]:
    """Watch files inside the `async with` block. Yields a task that ends once code has changed and can be compiled.

    A syntax error is printed, and the task waits for the next change.
    """
    task = asyncio.create_task(_wait_for_change(watched))
    await asyncio.sleep(0)  # the first step of the task starts the watch, before services are loaded: no change is missed
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _wait_for_change(watched: Sequence[Path]) -> None:
    first, known = True, elsewhere(watched)
    async for changes in awatch(*watched, watch_filter=Filter(), recursive=True, rust_timeout=200, yield_on_timeout=True):
        paths = {Path(path) for _, path in changes}
        if first:
            paths |= _missed(watched)
            first = False
        now = elsewhere(watched)
        paths |= changed(known, now)
        known |= now
        if paths and _compiles(paths):
            return


def _missed(watched: Iterable[Path]) -> set[Path]:
    """Return the files that have changed since this process replaced another one, before the watch started."""
    since = float(os.environ.get(_RESTARTED_AT, "inf"))
    files = {file for path in watched for file in (path.rglob("*") if path.is_dir() else (path,)) if file.suffix in CODE}
    return {file for file in files if since < file.stat().st_mtime <= time.time()}


def print_waiting() -> None:
    """Print that the next code change restarts the process."""
    click.echo("callboard: waiting for a change of code or settings", err=True)


def wait_and_restart() -> None:
    """Wait for a code change, then restart. For when not even the modules of the command can be imported."""

    async def wait() -> None:
        async with watching(folders(())) as changed:
            print_waiting()
            await changed

    try:
        asyncio.run(wait())
    except KeyboardInterrupt:
        sys.exit(0)
    restart()


def restart() -> None:
    """Replace this process with a new one that has the same arguments."""
    click.echo("callboard: code has changed, restarting")
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[_RESTARTED_AT] = str(time.time())
    os.environ.update(own_path())
    os.execv(sys.executable, own_command(*sys.argv[1:]))  # noqa: S606


def _compiles(paths: Iterable[Path]) -> bool:
    for path in paths:
        if path.suffix != ".py" or not path.exists():
            continue
        try:
            compile(path.read_bytes(), str(path), "exec")
        except (SyntaxError, ValueError):
            traceback.print_exc(limit=0)
            click.echo("callboard: the previous code keeps running", err=True)
            return False
    return True
