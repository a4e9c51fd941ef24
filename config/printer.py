"""Printing for processes that must not wait for the reader of their output, such as a pager or a pipe that nobody reads."""

import queue
import sys
import threading

import rich_click as click

from config import signals

_WAITING = 10_000
"""The lines that may wait. Further ones are counted and left out."""


class Printer:
    """Prints lines in a thread. If standard output goes away, the process stops."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._left_out = 0
        self._thread: threading.Thread | None = None

    def line(self, text: str) -> None:
        """Print a line, without waiting for it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._print, name="printer", daemon=True)
            self._thread.start()
        if self._lines.qsize() >= _WAITING:
            self._left_out += 1
            return
        if self._left_out:
            self._lines.put(f"callboard: {self._left_out} lines are left out, because nobody has read the output in time")
            self._left_out = 0
        self._lines.put(text)

    def close(self) -> None:
        """Print what still waits, but wait no longer than a second for its reader."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._lines.put(None)
            thread.join(timeout=1)

    def _print(self) -> None:
        while (text := self._lines.get()) is not None:
            try:
                click.echo(text)
            except (OSError, ValueError):
                signals.output_gone(sys.stdout, "standard output")
