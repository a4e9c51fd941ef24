"""A command that lacks a package names the extra that installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.extras import extra_for
from tests.project import RENTAL_SERVICES

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv[0] = "callboard"
from config.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("watchfiles", ["dev", "greeter", "gateway", "--no-reload"], "dev"),
        ("prompt_toolkit", ["repl"], "dev"),
        ("aiomqtt", ["devices", "--count", "5"], "devices"),
        ("argon2", ["routes"], "auth"),
        ("litestar", ["run", "gateway"], "gateway"),
    ],
)
def test_a_missing_package_is_reported_in_one_line_with_its_extra(
    module: str, command: list[str], extra: str, tmp_path: Path
) -> None:
    script = WITHOUT.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=tmp_path, env={**os.environ, "CALLBOARD_SERVICES": RENTAL_SERVICES}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert module in line
    assert f"pip install 'callboard[{extra}]'" in line


def test_a_module_outside_every_extra_has_no_extra() -> None:
    assert extra_for("numpy") is None
    assert extra_for("paho.mqtt.properties") == "devices"
