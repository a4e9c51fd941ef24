"""Files whose content changes while a process runs, such as passwords and keys that are rotated."""

import os
from collections.abc import Callable
from pathlib import Path

from runtime.telemetry import logger


class Watched:
    """A file that may be replaced. Looking at it costs one system call.

    Args:
        path: the file. Directories in it may be links, as Kubernetes mounts secrets.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._seen = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def changed(self) -> bool:
        """Return whether the file exists and has changed since the last call."""
        state = self._state()
        if state is None or state == self._seen:
            return False
        self._seen = state
        return True


def text_of(path: Path | str) -> str:
    """Return the text of a file, without a byte order mark and without its last line's end.

    Raises:
        OSError: if it cannot be read.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")


def reread(path: Path | str, text: str) -> Callable[[], str]:
    """Return a function that returns the present text of a file: `text` until it changes, and the last one if it cannot be read."""
    watched = Watched(path)

    def current() -> str:
        nonlocal text
        if watched.changed():
            try:
                text = text_of(path)
            except (OSError, UnicodeDecodeError) as error:
                logger("node").error("%s has changed, and cannot be read; its last content stays in use: %s", path, error)
            else:
                logger("node").info("%s has changed, and is used from now on", path)
        return text

    return current
