"""mypy and pyright accept what is right, and refuse what is wrong, where it is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

USES = Path(__file__).parent / "refused" / "uses.py"
ROOT = Path(__file__).parent.parent.parent
WRONG = {number for number, line in enumerate(USES.read_text().splitlines(), 1) if line.endswith("# refused")}


def test_mypy(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        str(tmp_path),
        str(USES),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {int(match[1]) for match in re.finditer(r"uses\.py:(\d+): error", done.stdout)}
    assert found == WRONG, done.stdout


def test_pyright() -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", str(USES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    found = {
        error["range"]["start"]["line"] + 1
        for error in errors
        if error["file"].endswith("uses.py") and error["severity"] == "error"
    }
    assert found == WRONG, done.stdout
