"""Starting anew when code changes: the process replaces itself, so it keeps its id, its terminal and its debugger."""

import asyncio
import os
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import rich_click as click
from watchfiles import PythonFilter, awatch  # pyright: ignore[reportUnknownVariableType]

from config import PACKAGES

ROOT = Path(__file__).parent.parent.parent
_AGAIN = "_CALLBOARD_DEV_AGAIN"
"""When this process replaced an earlier one."""
_SUFFIXES = (".py", ".sql", ".toml")
_FILTER = PythonFilter(extra_extensions=_SUFFIXES)


def is_again() -> bool:
    """Whether this process has replaced an earlier one."""
    return _AGAIN in os.environ


def folders(services: Sequence[str]) -> list[Path]:
    """Where code lies: the project's folders, and those of the user's services (as `package.module:Class`)."""
    packages = {Path.cwd() / place.partition(":")[0].split(".")[0] for place in services}
    files = {package.with_suffix(".py") for package in packages}
    return [path for path in {*(ROOT / name for name in PACKAGES), *packages, *files} if path.exists()]


@asynccontextmanager
async def watching(watched: Iterable[Path]) -> AsyncGenerator["asyncio.Task[None]", None]:
    """A task that ends when code has changed since now, and can be compiled. A syntax error is shown, and the old code runs on."""
    task = asyncio.create_task(_changed(watched))
    await asyncio.sleep(0)  # its first step begins to watch: what changes while services are loaded is not missed
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _changed(watched: Iterable[Path]) -> None:
    missed = True
    async for changes in awatch(*watched, watch_filter=_FILTER, recursive=True, rust_timeout=200, yield_on_timeout=True):
        paths = {Path(path) for _, path in changes}
        if missed:
            paths |= _missed(watched)
            missed = False
        if paths and _compiles(paths):
            return


def _missed(watched: Iterable[Path]) -> set[Path]:
    """What has changed since this process replaced another one, and may have been loaded before that."""
    since = float(os.environ.get(_AGAIN, "inf"))
    files = {file for path in watched for file in (path.rglob("*") if path.is_dir() else (path,)) if file.suffix in _SUFFIXES}
    return {file for file in files if since < file.stat().st_mtime <= time.time()}


def say_what_is_waited_for() -> None:
    """After a start that failed."""
    click.echo("callboard: waiting for a change of code", err=True)


def wait_and_start_anew() -> None:
    """Waits for a change of code when not even the command could be loaded, then replaces this process."""

    async def wait() -> None:
        async with watching(folders(())) as changed:
            say_what_is_waited_for()
            await changed

    try:
        asyncio.run(wait())
    except KeyboardInterrupt:
        sys.exit(0)
    start_anew()


def start_anew() -> None:
    """Replaces this process by a fresh one with the same arguments."""
    click.echo("callboard: code has changed, starting anew")
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[_AGAIN] = str(time.time())
    os.execv(sys.executable, [sys.executable, "-m", "config.cli", *sys.argv[1:]])  # noqa: S606


def _compiles(paths: Iterable[Path]) -> bool:
    for path in paths:
        if path.suffix != ".py" or not path.exists():
            continue
        try:
            compile(path.read_bytes(), str(path), "exec")
        except (SyntaxError, ValueError):
            traceback.print_exc(limit=0)
            click.echo("callboard: the code before the change runs on", err=True)
            return False
    return True
