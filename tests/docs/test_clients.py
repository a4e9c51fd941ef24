"""The programs in docs/clients.md work, in the versions that the page names. Not part of CI: `make clients` runs this."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Node
from tests.broker import Broker
from tests.system.process import ROOT
from tests.transports.mqtt.echo import Echo, transport

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?:python|javascript|sh)\n(?:#|//) (?P<name>\S+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = {found["name"]: found["text"] for found in BLOCK.finditer(PAGE)}
VERSIONS = dict(re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \|", PAGE, re.MULTILINE))
PYTHON = ("paho-mqtt", "aiomqtt", "gmqtt", "awscrt")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the clients of the page, in its versions."""
    folder = tmp_path_factory.mktemp("clients")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    packages = [f"{name}=={VERSIONS[name]}" for name in PYTHON]
    subprocess.run([folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    subprocess.run(["npm", "install", "--silent", "--prefix", folder, f"mqtt@{VERSIONS['MQTT.js']}"], check=True)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text, encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


def test_the_page_has_a_program_for_each_client() -> None:
    assert len(PROGRAMS) == len(VERSIONS) == 6


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_prints_a_reply_an_error_and_a_signal(installed: Path, tmp_path: Path, name: str) -> None:
    runner = {".py": str(installed / "venv" / "bin" / "python"), ".js": "node", ".sh": "bash"}[Path(name).suffix]
    async with Broker(tmp_path) as broker, Node([Echo], transport(broker.url)):
        process = await asyncio.create_subprocess_exec(
            runner, name, cwd=installed, env=os.environ | {"MQTT_PORT": str(broker.port)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        printed, _ = await asyncio.wait_for(process.communicate(), 60)
        output = printed.decode()
    assert process.returncode == 0, output
    reply, error, signal = output.splitlines()
    assert reply == 'reply "hello"'
    assert error.startswith("error error ")
    problem = json.loads(error.removeprefix("error error "))
    assert (problem["type"], problem["fields"]) == ("urn:callboard:echo:refused", {"reason": "because"})
    assert signal == 'signal callboard/1/signal/echo/Heard/hall {"room":"hall","text":"good night"}'
