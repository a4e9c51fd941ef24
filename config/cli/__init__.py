"""The `callboard` command."""

from config.packages import import_own_packages

import_own_packages()

from config.cli.main import main  # noqa: E402  # its imports need Callboard's own packages

__all__ = ["main"]
