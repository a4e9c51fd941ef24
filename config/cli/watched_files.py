"""Which changed files restart `dev`: code, migrations, settings, and the data files that services have read."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from watchfiles import Change, DefaultFilter

from config.load import DEFAULT_FILE

CODE = (".py", ".sql", ".toml")
"""How the names of files end whose change always counts."""
_ELSEWHERE = (
    "/proc/",
    "/sys/",
    "/dev/null",
    "/dev/tty",
    "/dev/random",
    "/dev/urandom",
    sys.prefix + os.sep,
    sys.base_prefix + os.sep,
)
_read: dict[str, float] = {}
"""When each file that was read had last changed by then."""
_written: set[str] = set()


class Filter(DefaultFilter):
    """Lets every file of a watched folder pass, except hidden ones, those of tools, and what this process has written."""

    def __call__(self, change: Change, path: str) -> bool:
        return not _is_own(path) and not os.path.isdir(path) and super().__call__(change, path)


def _is_own(path: str) -> bool:
    return (path in _written and not path.endswith(CODE)) or os.path.basename(path).startswith(".")


def note_files() -> None:
    """Note from now on which files this process reads and writes."""
    sys.addaudithook(_note)


def _note(event: str, args: Sequence[object]) -> None:
    """Note a file that is opened (docs.python.org, "Audit events table")."""
    if event not in ("open", "sqlite3.connect", "os.rename"):
        return
    path = args[event == "os.rename"]
    if not isinstance(path, str | Path):
        return
    full = os.path.abspath(path)
    if event == "sqlite3.connect":
        _written.update(f"{full}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))
    elif event == "os.rename" or not set("wax+").isdisjoint(str(args[1] or "")) or _writes(args[2]):
        _written.add(full)
    elif not full.startswith(_ELSEWHERE):
        with suppress(OSError):
            _read.setdefault(full, os.stat(full).st_mtime)


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def elsewhere(watched: Sequence[Path]) -> dict[Path, float]:
    """Return when each file was last changed that this process has loaded or read, and that is in no watched folder.

    The default settings file is always one of them; it counts as changed at 0 if it does not exist.
    """
    inside = tuple(f"{folder}{os.sep}" for folder in watched)
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    names = {name for name in loaded if isinstance(name, str)} | _read.keys()
    found = {Path(DEFAULT_FILE).absolute(): 0.0}
    for name in names | {str(path) for path in found}:
        if not name.startswith((*inside, *_ELSEWHERE)) and "site-packages" not in name and not _is_own(name):
            try:
                found[Path(name)] = os.stat(name).st_mtime
            except OSError:
                continue
    return found


def changed(known: Mapping[Path, float], now: Mapping[Path, float]) -> set[Path]:
    """Return the files that have changed since they were known, or since they were first read."""
    return {path for path, at in now.items() if known.get(path, _read.get(str(path), at)) != at}
