"""Child processes: the environment that they receive, and that the end of one does not end the others."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from config.processes import Process, program_environment, run_groups, service_environment

SECRETS = {
    "CALLBOARD_DEV__PASSWORD": "s1",
    "CALLBOARD_DEV__PASSWORD_FILE": "s2",
    "CALLBOARD_SERVICES__AUTH__SETTINGS__USERS": "s3",
    "CALLBOARD_SERVICES__MY_SHOP__SETTINGS__ANYTHING": "s8",
    "CALLBOARD_WALLET__LOW_CENTS": "s9",
    "CALLBOARD_AUTH__USERS_FILE": "s4",
    "CALLBOARD_TRANSPORT__MQTT__PASSWORD": "s5",
    "CALLBOARD_TRANSPORT__HTTP__KEY": "s6",
    "CALLBOARD_TOKEN": "s7",
    "CALLBOARD_transport__http__key": "s10",
    "CALLBOARD_DATABASE__URL": "s11",
    "CALLBOARD_SERVICES__WALLET__DATABASE": "s12",
    "CALLBOARD_SERVICES__AUTH__DATABASE_FILE": "s13",
    "CALLBOARD_SERVICES__MY_SHOP__DATABASE": "s14",
}
OTHERS = {
    "CALLBOARD_LOG__LEVEL": "debug",
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
    inherited = service_environment(service, ("auth", "wallet", "my-shop"))
    assert OTHERS.items() <= inherited.items()
    own = {name for name in SECRETS if f"_{service.upper()}__" in name}
    assert SECRETS.keys() & inherited.keys() == own


def test_a_program_that_is_not_ours_receives_no_settings_at_all() -> None:
    inherited = program_environment()
    assert not [name for name in inherited if name.startswith("CALLBOARD") or name == "PAYMENTS_URL"]
    assert inherited["PATH"] == "/bin"


_UP = """
import asyncio, sys
from config.cli.common import run_loop
from config.processes import Process, run_groups
from config.signals import stop_signal

child = "import sys; [print('line', n, 'x' * 100, flush=True) for n in range(2_000)]; open(sys.argv[1], 'w').close(); sys.stdin.read()"

async def main():
    process = Process("child", [sys.executable, "-c", child, sys.argv[1]], {}, 8, 0)
    await run_groups([[process]], stop_signal())

from config.cli.status import NodeFailed
try:
    run_loop(main())
except NodeFailed as error:
    print(error, file=sys.stderr)
"""


async def test_the_output_of_a_child_is_read_although_nobody_reads_ours(tmp_path: Path) -> None:
    """As in `callboard up | less`, and then as in `callboard up | head`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    script, written = tmp_path / "script.py", tmp_path / "written"
    script.write_text(_UP)
    up = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(written), env=environment, limit=1024,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert up.stdout is not None
    assert up.stderr is not None
    async with asyncio.timeout(60):
        assert (await up.stdout.readline()).startswith(b"child    | line 0")
        while not written.exists():
            await asyncio.sleep(0.02)
        up._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        assert (await up.stderr.read()).endswith(b"standard output has gone away: its reader has ended\n")
        await up.wait()


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
    pauses = [float(pause) for pause in re.findall(r"wrong +\| ended with status 2; starting it again in (\S+) s", printed)]
    assert pauses[0] < pauses[2], "the pauses grow"
    stop.set()
    await running
    assert pid
    assert printed.count("living   | up") == 1, "it was never restarted"
