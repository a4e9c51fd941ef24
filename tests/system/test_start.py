"""How commands start, and with which exit status they end: locks, the URL of the running system, wrong code, failing nodes."""

from pathlib import Path

from tests.system.process import Callboard, command
from tests.system.test_commands import GREETER, greeter_in, one_line

GREETER_ONLY = {"CALLBOARD_SERVICES": "greeter.service:Greeter"}
STATEFUL = GREETER.replace("Request, Service, handles", "Request, Service, Transaction, handles").replace(
    "ctx: Context) -> str", "ctx: Context, tx: Transaction) -> str"
)


async def test_a_second_process_on_the_folder_is_refused_and_a_second_shell_finds_the_first(tmp_path: Path) -> None:
    greeter_in(tmp_path, STATEFUL)
    async with Callboard(tmp_path, "dev", "greeter", "gateway", "--no-reload", **GREETER_ONLY) as running:
        await running.says("Stop with Ctrl-C")
        for arguments in (("dev", "greeter", "gateway", "--fresh"), ("run", "greeter")):
            line = one_line(*await command(tmp_path, *arguments, **GREETER_ONLY))
            assert f"is in use by process {running.process.pid} (`callboard dev`): stop that, or choose another folder" in line
        second = Callboard(tmp_path, "call", "Greet")
        assert second.port != running.port
        async with second:
            assert await second.ends() == 0, second.output
        assert second.output == '"hello"\n'


async def test_a_missing_environment_variable_ends_dev_with_status_2(tmp_path: Path) -> None:
    greeter_in(tmp_path, f"import os\nos.environ['GREETING']\n{GREETER}")
    line = one_line(*await command(tmp_path, "dev", "greeter", **GREETER_ONLY))
    assert "greeter/service.py:2: the environment variable GREETING is not set: set it" in line


async def test_a_node_that_fails_while_it_runs_ends_with_status_1(tmp_path: Path) -> None:
    code = GREETER.replace("Service, handles", "Service, every, handles")
    greeter_in(
        tmp_path, f"{code}\n    @every(seconds=0.01)\n    async def fail(self, ctx: Context) -> None:\n        raise OSError\n"
    )
    status, output = await command(tmp_path, "run", "greeter", CALLBOARD_NODE__RESTARTS="0", **GREETER_ONLY)
    assert status == 1, output
    assert output.splitlines()[-1].startswith("callboard: greeter crashed 1 times within a minute")


async def test_modules_with_the_names_of_our_packages_are_never_picked(tmp_path: Path) -> None:
    """`config` is left out: for `python -m config.cli`, Python itself looks for that name before any of our code runs."""
    wrong = "raise AssertionError('it is not ours')"
    (tmp_path / "runtime.py").write_text(wrong)
    for name in ("gateway", "transports", "services"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(wrong)
    status, output = await command(tmp_path, "openapi")
    assert status == 0, output
