"""A disk of its own for one run, so that it can be full."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

_SIZE = "1g"
_BLOCK = 1 << 20


class Disk:
    """A file system in memory.

    Attributes:
        folder: where it is mounted.
        can_fill: whether it could be mounted, which takes root on Linux. The folder of a bigger disk is not filled.
    """

    def __init__(self, folder: Path, *, can_fill: bool) -> None:
        self.folder = folder
        self.can_fill = can_fill
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no byte free."""
        if not self.can_fill:
            return
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            for size in (_BLOCK, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted() -> Generator[Disk, None, None]:
    """Mount a disk in a new folder, if that is allowed here. The end of the `with` block deletes what is on it."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # with a short path, for PostgreSQL's socket
    folder.chmod(0o755)  # PostgreSQL runs as another user
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=755", "callboard-chaos", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield Disk(folder, can_fill=is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder)
