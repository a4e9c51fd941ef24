"""The command line, as operators and developers use it: each command runs in a separate process."""

import asyncio
import json
import re
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from runtime.sockets import any_free_port
from tests.system.process import ROOT, Callboard, command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_dev_prints_working_curl_commands_and_stops_with_clients_connected(tmp_path: Path, number: signal.Signals) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        await running.says("Stop with Ctrl-C")
        script = "\n".join(
            line.strip()
            for line in running.output.splitlines()
            if line.strip().startswith(("TOKEN=", "SCOOTER=", "RIDE=", "curl -s "))
        )
        shell = await asyncio.create_subprocess_exec("sh", "-ec", script, stdout=asyncio.subprocess.PIPE)
        printed = (await shell.communicate())[0].decode()
        assert shell.returncode == 0
        assert '"email":"rider@example.com"' in printed
        assert '{"balance_cents":2000,"held_cents":0}' in printed
        assert '"state":"active"' in printed, "the ride has started"
        assert printed.count('"state":"ended"') == 1, "the ride has ended"
        idle = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(3)]
        idle[0][1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await running.ends(number) == 0, running.output
        assert "Traceback" not in running.output
        for _, writer in idle:
            writer.close()
        assert (tmp_path / "data" / "wallet.sqlite").exists()


async def test_dev_keeps_its_data_and_dev_fresh_deletes_it(tmp_path: Path) -> None:
    async def balance(*arguments: str) -> int:
        async with Callboard(tmp_path, "dev", "--no-reload", *arguments) as running:
            await running.ready()
            status, text = await command(
                tmp_path,
                "call",
                "wallet.TopUp",
                "amount_cents=5",
                "--as",
                "rider@example.com",
                CALLBOARD_GATEWAY__PORT=str(running.port),
            )
            assert status == 0, text
            _, text = await command(
                tmp_path, "call", "GetWallet", "--as", "rider@example.com", "--json", CALLBOARD_GATEWAY__PORT=str(running.port)
            )
            await running.ends(signal.SIGINT)
            found: int = json.loads(text)["balance_cents"]
            return found

    assert await balance() == 5
    assert await balance() == 10
    assert await balance("--fresh") == 5


GREETER = """
from runtime import ANYONE, Context, Contract, Request, Service, handles

greeter = Contract("greeter")


@greeter.message
class Greet(Request[str]):
    pass


class Greeter(Service):
    contract = greeter

    @handles(http="GET /greeting", allow=ANYONE)
    async def greet(self, message: Greet, ctx: Context) -> str:
        return "hello"
"""


async def wait_for_greeting(running: Callboard, greeting: str) -> None:
    """Wait until the greeter answers with this greeting."""
    async with asyncio.timeout(30), httpx.AsyncClient(base_url=running.url, verify=False) as client:
        while True:
            try:
                if (await client.get("/greeting")).json() == greeting:
                    return
            except httpx.HTTPError:
                pass
            assert running.process.returncode is None, running.output
            await asyncio.sleep(0.05)


def greeter_in(folder: Path, code: str) -> Path:
    """Write the greeter's package, and return the file with its code."""
    package = folder / "greeter"
    package.mkdir()
    (package / "__init__.py").write_text("")
    file = package / "service.py"
    file.write_text(code)
    return file


def dev_with_greeter(folder: Path) -> Callboard:
    """Return a `callboard dev` that runs the greeter and the gateway."""
    return Callboard(folder, "dev", "greeter", "gateway", CALLBOARD_SERVICES="greeter.service:Greeter")


async def test_dev_restarts_when_code_changes_and_survives_errors(tmp_path: Path) -> None:
    code = greeter_in(tmp_path, GREETER)
    async with dev_with_greeter(tmp_path) as running:
        await wait_for_greeting(running, "hello")
        pid = running.process.pid
        code.write_text(GREETER.replace("hello", "good day"))
        await wait_for_greeting(running, "good day")
        code.write_text(GREETER + "\ndef (")
        await running.says("SyntaxError")
        await wait_for_greeting(running, "good day")
        code.write_text(GREETER.replace("allow=ANYONE", "allow=None"))
        await running.says("say who may call")
        await running.says("waiting for a change of code or settings")
        code.write_text(GREETER.replace("hello", "good night"))
        await wait_for_greeting(running, "good night")
        assert running.process.pid == pid
        assert await running.ends(signal.SIGINT) == 0, running.output


async def test_dev_notices_code_that_changes_while_it_restarts(tmp_path: Path) -> None:
    """An editor may save a file twice. By the second time, the code has been loaded but is not watched yet."""
    code = greeter_in(tmp_path, GREETER)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, sys\nonce = pathlib.Path('once')\n"
        "if '_CALLBOARD_DEV_AGAIN' in os.environ and not once.exists():\n"
        "    once.touch()\n    sys.path.insert(0, '')\n    import greeter.service\n"
        "    code = pathlib.Path(greeter.service.__file__)\n    code.write_text(code.read_text().replace('day', 'night'))\n"
    )
    async with dev_with_greeter(tmp_path) as running:
        await wait_for_greeting(running, "hello")
        code.write_text(GREETER.replace("hello", "good day"))
        await wait_for_greeting(running, "good night")


async def test_dev_notices_code_that_changes_while_it_starts(tmp_path: Path) -> None:
    changed = GREETER.replace("hello", "good day")
    greeter_in(tmp_path, f"{GREETER}\n\nfrom pathlib import Path\nPath(__file__).write_text({changed!r})\n")
    async with dev_with_greeter(tmp_path) as running:
        await wait_for_greeting(running, "good day")


def one_line(status: int, output: str) -> str:
    """Check that a command failed with exit status 2 and one line of output, and return that line."""
    assert status == 2, output
    lines = output.strip().splitlines()
    assert len(lines) == 1, output
    assert lines[0].startswith("callboard: ")
    return lines[0]


async def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        for arguments in (("dev",), ("dev", "--no-reload"), ("run", "auth", "wallet", "gateway")):
            line = one_line(*await command(tmp_path, *arguments, CALLBOARD_GATEWAY__PORT=port))
            assert f"127.0.0.1:{port}" in line
            assert "CALLBOARD_GATEWAY__PORT" in line


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\x00" + b"\xff" * 5000])
async def test_a_broken_database_file_is_reported_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wallet.sqlite").write_bytes(content)
    for arguments in (("dev",), ("run", "wallet")):
        assert "wallet.sqlite" in one_line(*await command(tmp_path, *arguments))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"CALLBOARD_GATEWAY__PROT": "1"},
            "CALLBOARD_GATEWAY__PROT: unknown setting: did you mean gateway.port (CALLBOARD_GATEWAY__PORT)?",
        ),
        ({"CALLBOARD_GATEWAY__PORT": "many"}, "CALLBOARD_GATEWAY__PORT: expected `int`, got `str`"),
        ({"CALLBOARD_GATEWAY__PORT": "70000"}, "CALLBOARD_GATEWAY__PORT: expected `int` <= 65535"),
        ({"CALLBOARD_GATEWAY": "x"}, "gateway is a section"),
        (
            {"CALLBOARD_LOG__LEVEL": "loud"},
            "CALLBOARD_LOG__LEVEL: invalid enum value 'loud': choose from debug, error, info, warning",
        ),
        ({"CALLBOARD_DEV__PASSWORD": "short"}, "CALLBOARD_DEV__PASSWORD: expected `str` of length >= 8"),
        ({"CALLBOARD_SERVICES": "nowhere.service:X"}, "nowhere.service:X"),
        ({"CALLBOARD_SERVICES": "nowhere"}, "expected package.module:Class"),
    ],
)
async def test_a_wrong_setting_is_reported_in_one_line(tmp_path: Path, environment: dict[str, str], expected: str) -> None:
    assert expected in one_line(*await command(tmp_path, "dev", **environment))


async def test_an_unknown_service_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    assert "choose from auth, wallet, fleet, rides, notices, devices, gateway" in one_line(
        *await command(tmp_path, "run", "wallt")
    )


async def test_run_serves_until_it_is_terminated(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "run", "auth", "wallet", "gateway") as running:
        await running.ready()
        assert await running.ends(signal.SIGTERM) == 0, running.output


async def test_routes_and_openapi_describe_the_rest_api(tmp_path: Path) -> None:
    status, text = await command(tmp_path, "routes", "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert status == 0
    assert {
        "method": "GET",
        "path": "/wallet",
        "request": "wallet.GetWallet",
        "allow": "rider, operator, admin",
        "summary": "How much do I have?",
    } in rows
    status, text = await command(tmp_path, "routes")
    assert re.search(r"POST +/sessions +auth\.Login +anyone", text)
    status, text = await command(tmp_path, "openapi")
    assert (status, json.loads(text)["openapi"]) == (0, "3.1.0")


async def test_config_show_masks_secrets_and_names_sources(tmp_path: Path) -> None:
    (tmp_path / "callboard.toml").write_text("[gateway]\nmax_body = 5000\n")
    (tmp_path / "secret").write_text("from a file\n")
    environment = {"CALLBOARD_DEV__PASSWORD_FILE": "secret"}
    process = Callboard(tmp_path, "config", "show", "--json", **environment)
    del process.environment["CALLBOARD_DEV__PASSWORD"]
    async with process:
        assert await process.ends() == 0, process.output
    rows = {row["setting"]: row for row in map(json.loads, process.output.splitlines())}
    assert rows["dev.password"] == {"setting": "dev.password", "value": "***", "source": "CALLBOARD_DEV__PASSWORD_FILE"}
    assert rows["gateway.max_body"] == {"setting": "gateway.max_body", "value": 5000, "source": "callboard.toml"}
    assert rows["gateway.port"]["source"] == "CALLBOARD_GATEWAY__PORT"
    assert rows["log.level"]["source"] == "default"
    assert "from a file" not in process.output


async def test_call_reports_what_is_wrong(tmp_path: Path) -> None:
    status, text = await command(tmp_path, "call", "wallet.TopUp", "amount_cents=5")
    assert "is the system running?" in one_line(status, text)
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        port = str(running.port)
        assert "`callboard call` lists" in one_line(*await command(tmp_path, "call", "Xyz", CALLBOARD_GATEWAY__PORT=port))
        line = one_line(*await command(tmp_path, "call", "wallet.TopUp", "amuont=5", CALLBOARD_GATEWAY__PORT=port))
        assert "no field amuont: it takes amount_cents" in line
        status, text = await command(
            tmp_path, "call", "wallet.TopUp", "amount_cents=-5", "--as", "rider@example.com", CALLBOARD_GATEWAY__PORT=port
        )
        assert status == 1
        assert json.loads(text.partition("\ncallboard:")[0])["errors"][0]["pointer"] == "/amount_cents"
        assert "it takes amount_cents" in text


async def test_tail_shows_events_and_signals_and_ends_quietly(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        port = {"CALLBOARD_GATEWAY__PORT": str(running.port)}
        async with (
            Callboard(tmp_path, "tail", "auth.*", "--events", "--json", "--as", "operator@example.com", **port) as narrow,
            Callboard(tmp_path, "tail", "--as", "operator@example.com", **port) as wide,
        ):
            await wide.says("fleet.Telemetry")
            new = ["email=new@example.com", "password=long enough", "name=New"]
            await narrow.until(lambda: followers(running) == 2, "both tails are connected")
            assert (await command(tmp_path, "call", "Register", *new, **port))[0] == 0
            await narrow.says("auth.UserRegistered")
            await wide.says("auth.UserRegistered")
            first, line = narrow.output.splitlines()
            assert first == f"listening to auth.*, events, at {running.url}; Ctrl-C stops"
            shown = json.loads(line)
            assert (shown["kind"], shown["name"], shown["body"]["role"]) == ("event", "auth.UserRegistered", "rider")
            assert await narrow.ends(signal.SIGINT) == 0
            assert narrow.output.count("\n") == 2
            await running.ends(signal.SIGINT)
            await wide.says("the gateway is stopping")
            await wide.says("trying again")


def followers(running: Callboard) -> int:
    """Return the number of open streams, read from the gateway's metrics."""
    text = httpx.get(f"{running.url}/metrics", verify=False).text
    return int(next(line for line in text.splitlines() if line.startswith("callboard_followers ")).split()[1].partition(".")[0])


async def test_call_lists_and_describes_requests(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        port = {"CALLBOARD_GATEWAY__PORT": str(running.port)}
        status, text = await command(tmp_path, "call", **port)
        assert status == 0
        assert re.search(r"rides\.StartRide +scooter_id +rider +Take a scooter", text)
        status, text = await command(tmp_path, "call", "FindScooters", "--describe", **port)
        assert status == 0
        assert all(
            part in text
            for part in ("GET /scooters", "lat: number from -90", "radius_m: number over 0", "(optional, by default 20)")
        )
        assert "or 402 insufficient-funds" in (await command(tmp_path, "call", "StartRide", "--describe", **port))[1]
        assert "did you mean StartRide?" in one_line(*await command(tmp_path, "call", "StartRid", **port))
        status, text = await command(tmp_path, "call", "GetWallet", **port)
        assert status == 1
        assert "--as rider@example.com" in text
        refused = await command(tmp_path, "tail", "--as", "rider@example.com", **port)
        assert "403" in one_line(*refused)


@pytest.mark.parametrize("arguments", [("routes",), ("openapi",), ("config", "show")])
async def test_a_full_disk_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """As with `callboard openapi > openapi.json`; on Linux, a write to /dev/full fails as on a full disk."""
    if not Path("/dev/full").exists():
        return
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "config.cli", *arguments, cwd=ROOT, stdout=full, stderr=asyncio.subprocess.PIPE
        )
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode() == "callboard: the output: No space left on device: free some space, and run the command again\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("sevices", "services"), ("dead-leters", "dead-letters"), ("reconcile", "")],
    ids=["near", "hyphen", "none"],
)
async def test_a_mistyped_command_is_answered_with_the_nearest_one(typed: str, meant: str, tmp_path: Path) -> None:
    line = one_line(*await command(tmp_path, typed))
    assert line.startswith(
        f"callboard: there is no command {typed!r}: {f'did you mean {meant}? ' if meant else ''}`callboard --help`"
    )


async def test_dev_listens_on_the_port_that_its_option_names(tmp_path: Path) -> None:
    port = any_free_port()
    async with Callboard(tmp_path, "dev", "--no-reload", "--port", str(port)) as running:
        running.url = f"http://127.0.0.1:{port}"
        await running.ready()
        async with httpx.AsyncClient(base_url=running.url) as client:
            first = await client.get("/")
            assert (first.status_code, first.headers["location"]) == (307, "/console")
        assert await running.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_a_shell_gets_its_script_for_completion(shell: str, tmp_path: Path) -> None:
    status, output = await command(tmp_path, "completion", shell)
    assert (status, "_CALLBOARD_COMPLETE" in output) == (0, True), output
    assert {"bash": "-o nospace", "zsh": "-S ''", "fish": ""}[shell] in output, "no space follows FIELD="
    words = {
        "_CALLBOARD_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "callboard dead-letters r",
        "COMP_CWORD": "r" if shell == "fish" else "2",
    }
    _, completed = await command(tmp_path, **words)
    assert "retry" in completed
    assert "streams" not in completed


async def test_the_settings_are_checked_without_running_anything(tmp_path: Path) -> None:
    status, output = await command(tmp_path, "config", "check")
    assert (status, output.startswith("The settings are right, and 6 services fit together: auth,")) == (0, True), output
    wrong = one_line(*await command(tmp_path, "config", "check", CALLBOARD_GATEWAY__PORT="many"))
    assert "CALLBOARD_GATEWAY__PORT" in wrong
    missing = one_line(*await command(tmp_path, "config", "check", CALLBOARD_SERVICES="no.such.module:Shop"))
    assert "no.such.module" in missing


async def test_the_map_of_a_project_is_printed(tmp_path: Path) -> None:
    status, output = await command(tmp_path, "map")
    assert (status, output.splitlines()[0]) == (0, "flowchart LR")
    status, output = await command(tmp_path, "map", "--format", "svg")
    assert (status, output.startswith("<svg ")) == (0, True)


async def test_the_asyncapi_document_of_a_project_is_printed(tmp_path: Path) -> None:
    status, output = await command(tmp_path, "asyncapi")
    assert status == 0, output
    assert json.loads(output)["channels"]["rides-stream"]["address"] == "callboard/1/stream/rides"
