"""mypy and pyright report the wrong uses of the API in `refused/uses.py`, each on its line, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

USES = Path(__file__).parent / "refused" / "uses.py"
ROOT = Path(__file__).parent.parent.parent
EXPECTED = {number for number, line in enumerate(USES.read_text().splitlines(), 1) if line.endswith("# refused")}


def test_mypy_reports_each_wrong_use(tmp_path: Path) -> None:
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
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    reported = {int(match[1]) for match in re.finditer(r"uses\.py:(\d+): error", result.stdout)}
    assert reported == EXPECTED, result.stdout


def test_pyright_reports_each_wrong_use() -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", str(USES)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = json.loads(result.stdout)["generalDiagnostics"]
    reported = {
        error["range"]["start"]["line"] + 1
        for error in errors
        if error["file"].endswith("uses.py") and error["severity"] == "error"
    }
    assert reported == EXPECTED, result.stdout
