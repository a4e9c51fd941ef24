"""Child processes: the environment that they receive, and that the end of one does not end the others."""

import asyncio
import re
import sys

import pytest

from config.processes import Process, program_environment, run_groups, service_environment

SECRETS = {
    "CALLBOARD_DEV__PASSWORD": "s1",
    "CALLBOARD_DEV__PASSWORD_FILE": "s2",
    "CALLBOARD_AUTH__USERS": "s3",
    "CALLBOARD_AUTH__USERS_FILE": "s4",
    "CALLBOARD_TRANSPORT__MQTT__PASSWORD": "s5",
    "CALLBOARD_TRANSPORT__HTTP__KEY": "s6",
    "CALLBOARD_TOKEN": "s7",
}
OTHERS = {
    "CALLBOARD_LOG__LEVEL": "debug",
    "CALLBOARD_AUTH__ACCESS_SECONDS": "60",
    "PAYMENTS_URL": "u",
    "PATH": "/bin",
    "LC_ALL": "C",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, **OTHERS}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("service", ["wallet", "gateway", "auth"])
def test_a_service_receives_only_its_own_secrets(service: str) -> None:
    inherited = service_environment(service)
    assert OTHERS.items() <= inherited.items()
    own = {name for name in SECRETS if name.startswith(f"CALLBOARD_{service.upper()}__")}
    assert SECRETS.keys() & inherited.keys() == own


def test_a_program_that_is_not_ours_receives_no_settings_at_all() -> None:
    inherited = program_environment()
    assert not [name for name in inherited if name.startswith("CALLBOARD") or name == "PAYMENTS_URL"]
    assert inherited["PATH"] == "/bin"


async def test_a_process_that_keeps_ending_is_restarted_and_the_others_run_on(capsys: pytest.CaptureFixture[str]) -> None:
    stop = asyncio.Event()
    ending = [
        Process("wrong", ["/bin/sh", "-c", "echo callboard: a reason; exit 2"], {}, 8, 0),
        Process("failing", ["/bin/sh", "-c", "exit 1"], {}, 8, 1),
        Process("missing", ["/no/such/program"], {}, 8, 2),
        Process("killed", ["/bin/sh", "-c", "kill -9 $$"], {}, 8, 3),
    ]
    living = Process("living", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"], {}, 8, 4)
    running = asyncio.create_task(run_groups([ending, [living]], stop))
    printed = ""
    expected = ("ended with status 2", "ended with status 1", "could not be started", "was ended by SIGKILL", "up")
    async with asyncio.timeout(30):
        while not all(printed.count(text) >= (3 if text != "up" else 1) for text in expected):
            await asyncio.sleep(0.01)
            printed += "".join(capsys.readouterr())
            assert not running.done()
    assert "living   | up" in printed
    pid = living._process.pid if living._process is not None else 0
    pauses = [float(pause) for pause in re.findall(r"wrong +\| ended with status 2; starting it anew in (\S+) s", printed)]
    assert pauses[0] < pauses[2], "the pauses grow"
    stop.set()
    await running
    assert pid
    assert printed.count("living   | up") == 1, "it was never restarted"
