"""The command line: `callboard`."""

from config.cli.main import main

__all__ = ["main"]
