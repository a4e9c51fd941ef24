"""What is deployed runs: the generated settings, secrets, and access rules, on a real broker and a real PostgreSQL."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from runtime import DatabaseError
from runtime.sockets import any_free_port
from runtime.storage.postgres import PostgresDatabase
from runtime.testing import eventually
from tests.broker import find_mosquitto
from tests.config.deploy.project import Object, deploy, ride
from tests.postgres import Postgres
from tests.project import RENTAL_SERVICES
from tests.system.process import ROOT
from tests.transports.mqtt.test_dynamic_security import PLUGIN

SERVICES = ("auth", "wallet", "fleet", "rides", "notices", "devices", "gateway")


@asynccontextmanager
async def process(*command: str, folder: Path, **environment: str) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run a program, whose output goes into a file of its folder, until the block ends."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    with (folder / f"{command[-1].rpartition('/')[2]}.log").open("wb") as log:
        started = await asyncio.create_subprocess_exec(*command, env={**others, **environment}, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield started
        finally:
            if started.returncode is None:
                started.terminate()
            await started.wait()


class Deployment:
    """The containers of a `compose.yaml`, as processes on this machine: names are `localhost`, and mounts are folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document: Object = msgspec.yaml.decode((folder / "compose.yaml").read_bytes())
        self.ports = {f"{name}:{port}": f"localhost:{any_free_port()}" for name in SERVICES for port in (8100,)}
        self.ports |= {"mosquitto:8883": f"localhost:{any_free_port()}", "0.0.0.0:8000": f"localhost:{any_free_port()}"}
        self.url = f"http://{self.ports['0.0.0.0:8000']}"

    def environment(self, name: str) -> dict[str, str]:
        service = self.document["services"][name]
        found: dict[str, str] = {}
        for variable, value in service["environment"].items():
            for place, port in self.ports.items():
                value = value.replace(place, port)
            found[variable] = value
            for mount in service["volumes"]:
                source, target, *_ = mount.split(":")
                if source.startswith("./"):
                    found[variable] = found[variable].replace(f"{target}/", f"{self.folder / source}/")
        data = self.folder / "data" / name
        data.mkdir(parents=True, exist_ok=True)
        found |= {"CALLBOARD_DATABASE__FOLDER": str(data), "CALLBOARD_HEALTH__PORT": "0"}
        if name == "gateway":
            found["CALLBOARD_GATEWAY__PORT"] = self.url.rpartition(":")[2]
        if "CALLBOARD_TRANSPORT__HTTP__PORT" in found:
            found["CALLBOARD_TRANSPORT__HTTP__PORT"] = self.ports[f"{name}:8100"].rpartition(":")[2]
        return found

    def broker(self, *, dynamic: bool) -> Path:
        """Write the configuration of the broker for this machine."""
        text = (self.folder / "mosquitto.conf").read_text()
        text = text.replace("/run/secrets/", f"{self.folder}/secrets/mosquitto/")
        text = text.replace("listener 8883", f"listener {self.ports['mosquitto:8883'].rpartition(':')[2]}")
        text = text.replace("listener 8884", f"listener {any_free_port()}")
        if dynamic:
            text = re.sub(
                r"password_file .*/passwords\nacl_file .*/access\n",
                f"plugin {PLUGIN}\nplugin_opt_config_file {self.folder}/dynamic-security.json\n",
                text,
            )
            assert "plugin_opt" in text
        path = self.folder / "mosquitto-here.conf"
        path.write_text(("user root\n" if os.geteuid() == 0 else "") + text)
        return path


async def run_migrations(deployment: Deployment, environment: Mapping[str, Mapping[str, str]]) -> None:
    for name in SERVICES[:-1]:
        async with process(
            sys.executable, "-m", "config.cli", "migrate", name, folder=deployment.folder, **environment[name]
        ) as job:
            assert await job.wait() == 0, (deployment.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that trusts its owner, and wants a password from everybody else."""
    made = Postgres("fsync=off", "max_connections=200")
    made.start()
    try:
        rules = "local all all trust\nhost all callboard 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (made.folder / "data" / "pg_hba.conf").write_text(rules)
        made.run("SELECT pg_reload_conf()")
        yield made
    finally:
        made.stop()


async def test_a_role_sees_its_own_schema_alone(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.new_database()
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    monkeypatch.setenv("CALLBOARD_DATABASE__URL", url)
    deploy("systemd", tmp_path / "out")
    server.run((tmp_path / "out" / "postgresql-roles.sql").read_text(), url.rpartition("/")[2])
    urls = {name: (tmp_path / "out" / "secrets" / name / "database-url").read_text() for name in SERVICES[:-1]}
    for name in ("rides", "wallet"):
        database = PostgresDatabase(urls[name], name)
        await database.open()
        await database.script("CREATE TABLE own (id BIGINT)")
        await database.close()
    database = PostgresDatabase(urls["wallet"], "wallet")
    await database.open()
    try:
        assert await database.fetch("SELECT * FROM own") == []
        for forbidden in ("SELECT * FROM rides.own", "SELECT rolpassword FROM pg_authid"):
            with pytest.raises(DatabaseError, match="permission denied"):
                await database.fetch(forbidden)
    finally:
        await database.close()
    with pytest.raises(DatabaseError, match="password"):
        await PostgresDatabase(urls["wallet"].replace("wallet:", "rides:"), "rides").open()


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        pytest.param("files", "mqtt", marks=pytest.mark.long),
        ("postgres", "mqtt"),
        pytest.param("files", "dynamic", marks=pytest.mark.long),
        pytest.param("files", "http", marks=pytest.mark.long),
        pytest.param("postgres", "http", marks=pytest.mark.long),
    ],
    indirect=["way"],
)
async def test_a_deployment_runs(way: str, kind: str, server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "postgres":
        monkeypatch.setenv("CALLBOARD_DATABASE__URL", server.new_database())
    monkeypatch.setenv("CALLBOARD_TRANSPORT__KIND", "http" if kind == "http" else "mqtt")
    monkeypatch.setenv("CALLBOARD_SERVICES__DEVICES__SETTINGS__COUNT", "1")
    said = deploy("compose", tmp_path / "out")
    deployment = Deployment(tmp_path / "out")
    environment = {name: deployment.environment(name) for name in SERVICES}
    async with AsyncExitStack() as stack:
        if way == "postgres":
            assert "postgresql-roles.sql" in said
            database = os.environ["CALLBOARD_DATABASE__URL"].rpartition("/")[2]
            for _ in range(2):  # running it twice does no harm
                server.run((tmp_path / "out" / "postgresql-roles.sql").read_text(), database)
            await run_migrations(deployment, environment)
        if kind != "http":
            configuration = deployment.broker(dynamic=kind == "dynamic")
            await stack.enter_async_context(process(find_mosquitto(), "-c", str(configuration), folder=tmp_path))
        for name in SERVICES:
            await stack.enter_async_context(
                process(sys.executable, "-m", "config.cli", "run", name, folder=tmp_path, **environment[name])
            )
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=deployment.url, timeout=20))

        async def is_ready() -> bool:
            try:
                return (await client.get("/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

        try:
            await eventually(is_ready, "the gateway knows all services", 60)
        except AssertionError:
            raise AssertionError("\n".join(path.read_text() for path in tmp_path.glob("*.log"))) from None
        await ride(client, (tmp_path / "out" / "secrets" / "password").read_text().strip())
