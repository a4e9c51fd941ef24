"""Locks on the files of a database folder. The operating system releases them when their process ends, however it ends."""

import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Self

from runtime import StartError


class Locked(StartError):
    """Another process uses the folder."""


class Lock:
    """A lock on a file that contains what its holder says about itself. It lasts until its `with` block or the process ends.

    Args:
        path: the file, which is created with its folder. It stays when the lock is released.
        text: what `holder` returns to others while the lock lasts.

    Raises:
        Locked: if another process holds the lock.
        StartError: if the file cannot be written.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file: IO[str] = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        if not _lock(self._file):
            self._file.seek(0)
            said = self._file.read().strip()
            self._file.close()
            raise Locked(
                f"{path.parent} is in use by {said or 'another process'}: stop that, or choose another folder with CALLBOARD_DATABASE__FOLDER"
            )
        try:
            path.chmod(0o600)
            self._file.truncate(0)
            os.write(self._file.fileno(), text.encode())
        except OSError as error:
            self._file.close()
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StartError:
        return StartError(f"{self.path}: {error.strerror}: choose another folder with CALLBOARD_DATABASE__FOLDER")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._file.truncate(0)
        self._file.close()


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # a platform without these locks
        return True
    try:
        # Unlike flock(), this lock is not inherited by a child process, which might outlive this one
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def holder(path: Path) -> str | None:
    """Return what the process that holds the lock on a file says about itself; None if no other process holds it."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            return None if _lock(file) else file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None


def url_published(folder: Path, url: str) -> Lock:
    """Tell the commands that use the same folder the URL of the running system, as long as the lock lasts."""
    return Lock(folder / "url", url)


def running_url(folder: Path) -> str | None:
    """Return the URL of the system that `dev` or `up` runs on a folder now, or None."""
    return holder(folder / "url") or None


@contextmanager
def databases_locked(folder: Path, services: Iterable[str], command: str) -> Generator[None, None, None]:
    """Lock the databases of services in a folder for this process during the `with` block.

    Args:
        command: the command that uses them, named to a second one that wants to.

    Raises:
        Locked: if another process uses one of them.
    """
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(Lock(folder / f"{service}.lock", f"process {os.getpid()} (`{command}`)"))
        yield
