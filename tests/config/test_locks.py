"""The lock files resolve in an empty environment, with the oldest pip that ships with a supported Python and with the newest.

pip really resolves them, and checks every hash and every pinned extra. `make test-locks` runs these tests. They take minutes.
"""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIPS = ("pip==22.3", "pip")
"""Python 3.11.0 ships with the first. The second is the newest release."""


CASES = [
    # this one takes as long as all others together, and these packages are installed before any test can run
    pytest.param(pip, lock, marks=pytest.mark.long if (pip, lock.name) == (PIPS[0], "test.txt") else ())
    for pip in PIPS
    for lock in LOCKS
]


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the Python of an empty environment with one version of pip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    found = folder / "bin" / "python"
    upgrade = ["install", "--quiet", "--disable-pip-version-check", "--upgrade", request.param]
    subprocess.run([found, "-m", "pip", *upgrade], check=True)
    return found


@pytest.mark.parametrize(("python", "lock"), CASES, indirect=["python"], ids=lambda value: getattr(value, "name", value))
def test_a_lock_file_resolves_in_an_empty_environment(python: Path, lock: Path) -> None:
    options = ["install", "--dry-run", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    done = subprocess.run([python, "-m", "pip", *options, "-r", lock], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{lock.name} on {sys.version}: {done.stderr}"


def test_every_lock_file_was_found() -> None:
    assert [path.name for path in LOCKS] == ["build.txt", "image.txt", "run.txt", "test.txt"]
