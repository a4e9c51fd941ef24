"""`callboard new`: what it writes passes its own tests and checks, and runs."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from config.cli.new import new_command
from runtime import CallboardError
from tests.system.process import ROOT, Callboard

NAMES = (
    pytest.param("shop", marks=pytest.mark.long),
    pytest.param("x2", marks=pytest.mark.long),
    "post-office-of_a-large-town-30",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words: str) -> str:
    result = CliRunner().invoke(new_command, words)
    if isinstance(result.exception, CallboardError):
        assert "\n" not in str(result.exception)
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def run(project: Path, *command: str) -> None:
    """Run a Python module in the project and expect success."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_new_project_passes_its_own_checks(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"cd {name} && make dev" in new(name)
    monkeypatch.chdir(folder / name)
    new("service", "mailer")
    run(folder / name, "ruff", "check", "--no-cache", ".")
    run(folder / name, "ruff", "format", "--no-cache", "--check", ".")
    run(folder / name, "mypy", "--follow-imports", "silent", "--cache-dir", str(folder / "mypy"), ".")
    run(folder / name, "pytest", "-q", "-p", "no:cacheprovider")


async def test_a_new_project_runs(folder: Path) -> None:
    new("shop")
    async with (
        Callboard(folder / "shop", "dev", "--no-reload", CALLBOARD_SERVICES="") as running,
        httpx.AsyncClient(base_url=running.url, verify=False) as client,
    ):
        await running.says("Stop with Ctrl-C")
        rider = {"email": "rider@example.com", "password": "a dev password"}
        token = (await client.post("/sessions", json=rider)).json()["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        added = await client.post("/shop/items", json={"text": "a thing"}, headers=bearer)
        assert added.status_code == 201
        assert (await client.get("/shop/items", headers=bearer)).json() == {"items": [added.json()]}
        assert (await client.get("/shop/items")).status_code == 401


@pytest.mark.parametrize(
    "name",
    [
        "Shop",
        "1shop",
        "sh op",
        "shop-",
        "a--b",
        "../shop",
        "config",
        "services",
        "json",
        "class",
        "auth",
        "callboard",
        "tests",
        "a" * 31,
    ],
)
def test_a_name_that_would_not_work_is_refused(name: str) -> None:
    with pytest.raises(CallboardError, match="cannot be a name: "):
        new(name)


def test_nothing_that_exists_is_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CallboardError, match=r"no project here: .* has no callboard\.toml"):
        new("service", "shop")
    new("shop")
    with pytest.raises(CallboardError, match="shop/ exists already"):
        new("shop")
    monkeypatch.chdir(folder / "shop")
    with pytest.raises(CallboardError, match=r"callboard\.toml has a service shop already"):
        new("service", "shop")
    (folder / "shop" / "mailer.py").touch()
    with pytest.raises(CallboardError, match=r"mailer\.py exists already"):
        new("service", "mailer")
    with pytest.raises(CallboardError, match=r"expected `callboard new NAME`"):
        new("one", "two")
