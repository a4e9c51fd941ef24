"""The clients of docs/generated-clients.md: each generator makes one from the running system, and its program uses that system.

`make clients` runs this file. It installs what the page names into temporary folders, and needs Node.js.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.process import ROOT, Callboard

PAGE = (ROOT / "docs" / "generated-clients.md").read_text()
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?:#|//) (?P<name>[\w.-]+)\n")
PASSWORD = "a dev password"
NEWMAN = "newman@6.2.2"


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[Callboard, None]:
    folder = tmp_path / "system"
    folder.mkdir()
    async with Callboard(folder, "dev", "--no-reload") as running:
        await running.ready()
        yield running


async def run(folder: Path, script: str) -> str:
    """Run a shell script in a folder, expect success, and return what it printed."""
    environment = {**os.environ, "RIDER_PASSWORD": PASSWORD}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    shell = await asyncio.create_subprocess_exec(
        "sh", "-e", "-c", script, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed = (await shell.communicate())[0].decode()
    assert shell.returncode == 0, printed
    return printed


async def follow_page(section: str, folder: Path, url: str) -> str:
    """Write the files of a section of the page, run its commands, and return what they printed."""
    folder.mkdir()
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0].replace("http://127.0.0.1:8000", url)
    commands = ""
    for block in BLOCK.finditer(text):
        if block["language"] == "sh":
            commands += block["text"]
        else:
            name = NAME.match(block["text"])
            assert name is not None, "the first line names the file"
            (folder / name["name"]).write_text(block["text"])
    assert commands
    return await run(folder, commands)


@pytest.mark.parametrize("section", ["openapi-python-client", "openapi-typescript", "orval"])
async def test_a_generated_client_uses_keys_and_handles_typed_errors(section: str, system: Callboard, tmp_path: Path) -> None:
    printed = await follow_page(section, tmp_path / "client", system.url)
    assert printed.endswith("refused with 0 cents\nthe wallet has 100 cents\n"), printed


async def test_a_postman_collection_draws_a_key_for_each_request(system: Callboard, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    await follow_page("Postman", folder, system.url)
    collection = json.loads((folder / "callboard.postman.json").read_text())
    requests = {item["name"]: item for item in _requests(collection)}
    keys = {name: _key(item) for name, item in requests.items() if _key(item) is not None}
    assert set(keys.values()) == {"{{$guid}}"}
    assert len(keys) == 3

    top_up, ride = requests["Add money to the wallet"], next(item for name, item in requests.items() if name.startswith("Take a"))
    top_up["request"]["body"]["raw"], ride["request"]["body"]["raw"] = '{"amount_cents": 100}', '{"scooter_id": "s-1"}'
    fixed = json.loads(json.dumps(top_up))
    next(header for header in fixed["request"]["header"] if header["key"] == "Idempotency-Key")["value"] = "by-hand"
    collection["item"] = [ride, top_up, top_up, fixed, fixed]
    (folder / "run.json").write_text(json.dumps(collection))
    async with httpx.AsyncClient(base_url=system.url, verify=False) as client:
        login = await client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
        token = login.json()["access_token"]
        await run(
            folder,
            f"npm install --silent {NEWMAN} && npx newman run run.json --env-var baseUrl={system.url} --env-var bearerToken={token} "
            "--reporters json --reporter-json-export report.json",
        )
        wallet = (await client.get("/wallet", headers={"authorization": f"Bearer {token}"})).json()
    answers = [execution["response"] for execution in json.loads((folder / "report.json").read_text())["run"]["executions"]]
    assert [answer["code"] for answer in answers] == [402, 201, 201, 201, 201]
    assert json.loads(bytes(answers[0]["stream"]["data"]))["code"] == "insufficient-funds"
    assert wallet["balance_cents"] == 300, "two keys drawn and one entered by hand, which was sent twice"


def _requests(item: dict[str, Any]) -> list[dict[str, Any]]:
    if "request" in item:
        return [item]
    return [found for part in item.get("item", ()) for found in _requests(part)]


def _key(item: dict[str, Any]) -> str | None:
    return next((header["value"] for header in item["request"].get("header", ()) if header["key"] == "Idempotency-Key"), None)
