"""Another checkout of Callboard, measured by the benchmarks of this one."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from runtime import CallboardError

_HERE = Path(__file__).parent.parent.parent


@contextmanager
def other_version(checkout: Path) -> Generator[Path, None, None]:
    """Provide a folder with the packages of another checkout and the benchmarks of this one.

    Raises:
        CallboardError: if the folder is not a checkout.
    """
    checkout = checkout.resolve()
    if not (checkout / "config" / "cli").is_dir():
        raise CallboardError(f"{checkout} is not a checkout of Callboard: there is no config/cli in it")
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as name:
        folder = Path(name)
        cli = folder / "config" / "cli"
        cli.mkdir(parents=True)
        for package in ("runtime", "transports", "gateway", "services"):
            (folder / package).symlink_to(checkout / package)
        for source, target in ((checkout / "config", folder / "config"), (checkout / "config" / "cli", cli)):
            for entry in source.iterdir():
                if entry.name not in ("cli", "bench", "bench.py", "__pycache__"):
                    (target / entry.name).symlink_to(entry)
        (cli / "bench").symlink_to(_HERE / "config" / "cli" / "bench")
        (folder / "tests").symlink_to(_HERE / "tests")
        yield folder
