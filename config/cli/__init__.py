"""The `callboard` command."""

from config.cli.main import main

__all__ = ["main"]
