"""What several commands need."""

import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from config.load import Loaded, load
from config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

T = TypeVar("T")


def with_config(function: F) -> F:
    """Adds `--config`."""
    option = click.option(
        "--config", "config_file", type=click.Path(path_type=Path), help="A TOML file with settings (default: callboard.toml)."
    )
    return option(function)


def loaded(config_file: Path | None) -> Loaded:
    """The settings from the file and the environment."""
    return load(config_file, os.environ)


def set_up_logging(settings: Settings) -> None:
    """Logs go to standard error, one line each."""
    logging.basicConfig(
        level=settings.log.level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for chatty in ("aiosqlite", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def run_loop(work: Coroutine[Any, Any, T], *, debug: bool = False) -> T:
    """Runs an event loop: uvloop's, or asyncio's own under a debugger and where there is no uvloop."""
    import asyncio

    if not debug:
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.run(work)
    return asyncio.run(work)
