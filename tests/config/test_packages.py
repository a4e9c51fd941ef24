"""A command that starts another one starts ours, whatever the working directory contains."""

import os
import subprocess
from pathlib import Path

import pytest

from config.packages import ROOT, own_command, own_path


def test_our_own_command_is_found_in_a_folder_with_modules_of_the_same_names(tmp_path: Path) -> None:
    for name in ("config", "runtime", "gateway", "transports"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('it is not ours')")
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").write_text("raise AssertionError('it is not ours')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own_path()
    done = subprocess.run(
        own_command("routes", "--help"), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "List the REST routes" in done.stdout


def test_the_path_of_a_process_that_restarts_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    path = own_path()
    assert path == {"PYTHONPATH": f"{ROOT}{os.pathsep}elsewhere"}
    monkeypatch.setenv("PYTHONPATH", path["PYTHONPATH"])
    assert own_path() == {}
