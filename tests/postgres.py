"""A real PostgreSQL on a free port, started and stopped by the tests that need it."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from runtime.sockets import any_free_port

_TEMPORARY = tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp"
"""A folder for sockets, whose paths may have some hundred characters. That of macOS is too long."""
_SAVES_TIME = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "shared_buffers=16MB",
    "max_connections=400",
    "max_wal_size=64MB",
    "min_wal_size=32MB",
)


def find_program(name: str) -> str:
    """Return the path of one of PostgreSQL's server programs, which Debian installs beside those of other versions."""
    folders = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *Path("/opt/homebrew/opt").glob("postgresql*/bin"),
    ]
    found = next((str(folder / name) for folder in folders if (folder / name).exists()), None) or shutil.which(name)
    assert found is not None, (
        "PostgreSQL is needed: `make test` installs it (Debian: apt-get install postgresql; macOS: brew install postgresql@17)"
    )
    return found


def as_user(folder: Path) -> list[str]:
    """Return the beginning of a command that runs a server which refuses to run as root, and give it a folder."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


class Postgres:
    """A server with a data folder of its own.

    Args:
        options: settings such as `fsync=off`.
        folder: where its data is. The path of a socket has to be short, so this one has to be, too.
        of: the primary, if this server is its standby.
    """

    def __init__(self, *options: str, folder: Path | None = None, of: "Postgres | None" = None) -> None:
        self.port = any_free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=_TEMPORARY)) if folder is None else folder
        self._options = options
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = as_user(self.folder)
        data = ["-D", str(self.folder / "data"), "-U", "callboard"]
        if of is None:
            command = [find_program("initdb"), *data, "-A", "trust", "-N", "--no-instructions", "--no-locale", "-E", "UTF8"]
        else:
            command = [find_program("pg_basebackup"), *data, "-h", "127.0.0.1", "-p", str(of.port), "-R", "-N", "-c", "fast"]
        subprocess.run([*self._as_user, *command], check=True, capture_output=True, cwd="/tmp")

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [
            word
            for option in ("listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", *self._options)
            for word in ("-c", option)
        ]
        command = [find_program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, *command], stdout=log, stderr=log, cwd="/tmp", start_new_session=True
            )
        ends = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
            assert time.monotonic() < ends, "PostgreSQL does not answer"
            time.sleep(0.02)  # the server is started before the event loop has work

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        ready = subprocess.run([find_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False)
        return ready.returncode == 0

    def run(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as an operator would, and return what it prints."""
        command = [
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "callboard",
            "-d",
            database,
            "-c",
            statement,
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def new_database(self) -> str:
        """Create a database, and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        self.run(f"CREATE DATABASE {name}")
        return f"postgresql://callboard@127.0.0.1:{self.port}/{name}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its processes, such as SIGSTOP."""
        assert self._process is not None
        parent = str(self._process.pid)
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
        children = [pid for pid, of in map(str.split, table.splitlines()) if of == parent]
        for pid in (parent, *children):
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        assert self._process is not None
        self.signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the server, and delete its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared_postgres() -> Postgres:
    """Return the server that the tests of this process share. Each of them has a database of its own."""
    server = Postgres(*_SAVES_TIME)
    atexit.register(server.stop)
    server.start()
    return server


def stop_shared() -> None:
    """End the server that the tests of this process have shared, if they have. A process of pytest-xdist may be killed before it ends in order."""
    if shared_postgres.cache_info().currsize:
        shared_postgres().stop()
