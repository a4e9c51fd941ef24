"""A project from `callboard new` in a container, on the image without the scooter rental."""

import json
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from config.cli.new import new_command
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.containers.engine import build, engine, run

BASE = "callboard-base"


async def test_a_new_project_runs_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await build("--target", "callboard", tag=BASE)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(new_command, ["shop"])
    assert made.exit_code == 0, made.output
    folder, port = tmp_path / "shop", any_free_port()
    users = folder / "users.json"
    users.write_text(json.dumps([{"email": "ada@example.com", "role": "rider", "password": "a good password"}]))
    users.chmod(0o644)
    command = ["docker", "compose"] if engine() == "docker" else [str(Path(sys.executable).parent / "podman-compose")]
    compose_file = [*command, "-p", f"callboard-{port}", "-f", str(folder / "compose.yaml")]

    async def compose(*arguments: str, status: int | None = 0) -> None:
        await run(*compose_file, *arguments, status=status, PORT=str(port), BASE=BASE)

    try:
        await compose("up", "-d", "--build")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, verify=False) as client:

            async def is_ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await eventually(is_ready, "the project answers", 60)
            login = await client.post("/sessions", json={"email": "ada@example.com", "password": "a good password"})
            ada = {"Authorization": f"Bearer {login.json()['access_token']}"}
            added = await client.post("/shop/items", json={"text": "a thing"}, headers=ada)
            assert (added.status_code, added.json()["text"]) == (201, "a thing")
            await compose("restart")
            await eventually(is_ready, "the project answers again", 60)
            assert (await client.get("/shop/items", headers=ada)).json() == {"items": [added.json()]}
            assert (await client.get("/wallet", headers=ada)).status_code == 404, "the scooter rental is not there"
    finally:
        await compose("down", "-v", "-t", "1", status=None)
