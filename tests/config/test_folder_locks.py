"""Two processes never use one database folder, and a process that has died does not keep others out."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.folder_locks import Lock, Locked, databases_locked, running_url, url_published

HOLD = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from config.folder_locks import databases_locked, url_published
folder = Path(sys.argv[1])
with databases_locked(folder, ["wallet", "fleet"], "callboard dev"), url_published(folder, "http://127.0.0.1:8123"):
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that holds the locks of two databases until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_told_which_process_has_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with other_process(folder) as process:
        with pytest.raises(Locked) as caught, databases_locked(folder, ["rides", "wallet"], "callboard run"):
            pass
        assert str(caught.value) == (
            f"{folder} is in use by process {process.pid} (`callboard dev`): stop that, or choose another folder with CALLBOARD_DATABASE__FOLDER"
        )
        with databases_locked(folder, ["rides"], "callboard run"):
            pass  # another service; the failed attempt has left no lock
        assert running_url(folder) == "http://127.0.0.1:8123"
        process.kill()
        process.wait()
        assert running_url(folder) is None, "the system no longer runs"
        with databases_locked(folder, ["wallet", "fleet"], "callboard run"):
            pass


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="choose another folder with CALLBOARD_DATABASE__FOLDER"):
        Lock(tmp_path / "file" / "x.lock", "")


def test_only_the_owner_may_read_a_lock(tmp_path: Path) -> None:
    with url_published(tmp_path, "http://127.0.0.1:8000"):
        assert (tmp_path / "url").stat().st_mode & 0o777 == 0o600
