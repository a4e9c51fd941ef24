"""What the pytest plugin is made of; docs/examples/orders uses its fixtures."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated

import pytest

from config.testing import running
from runtime import ANYONE, Context, Contract, Cookie, Request, Service, Struct, UsageError, handles, resource
from runtime.testing import FakeService, MovableClock, replaced

mirror = Contract("mirror")


class MirrorSettings(Struct):
    greeting: str = "Hello"


@mirror.message
class Look(Request[str]):
    size: int = 1


class Mirror(Service):
    contract = mirror
    Settings = MirrorSettings
    settings: MirrorSettings

    @resource
    async def glass(self) -> AsyncGenerator[str, None]:
        yield "the real glass"

    @handles(http="GET /look", allow=ANYONE)
    async def look(self, message: Look, ctx: Context) -> str:
        user = "" if ctx.identity is None else f", {ctx.identity.subject} {ctx.identity.roles} {ctx.identity.scopes}"
        return f"{self.settings.greeting}{user}: {self.glass}" * message.size


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "callboard.toml"
    path.write_text(f'[services.mirror]\nclass = "{__name__}:Mirror"\n[identity]\nscheme = "Token"\n')
    return path


async def test_a_client_needs_no_login_and_no_port(tmp_path: Path, file: Path) -> None:
    async with running(tmp_path / "data", file=file) as project:
        client = project.client
        assert (await client.get("/look")).json() == "Hello: the real glass"
        editor = client.as_user("u1", roles=("editor", "author"), scopes="a b")
        assert (await editor.get("/look")).json() == "Hello, u1 ('editor', 'author') ('a', 'b'): the real glass"
        assert (await client.as_user("u2").get("/look")).json() == "Hello, u2 () (): the real glass"
        assert (await client.head("/look")).headers["content-length"] == "23"
        assert len((await client.get("/look", params={"size": 4000})).json()) > 80_000
        assert (await client.get("/look", params={"size": "x"})).status_code == 422
        assert (await client.post("/look", content=b"x" * 2_000_000)).status_code == 405
        assert (await client.get("/openapi.json")).json()["paths"].keys() == {"/look"}
        assert (await client.get("/look", headers={"Authorization": "Token nonsense"})).status_code == 401
        assert isinstance(project.service(Mirror), Mirror)
        with pytest.raises(UsageError, match="not running"):
            project.service(FakeService)


async def test_settings_and_resources_are_replaced(tmp_path: Path, file: Path) -> None:
    settings = {"CALLBOARD_SERVICES__MIRROR__SETTINGS__GREETING": "Hi"}
    async with running(tmp_path / "data", file=file, settings=settings, fakes=[replaced(Mirror, glass="a stand-in")]) as project:
        assert (await project.client.get("/look")).json() == "Hi: a stand-in"


async def test_the_clock_of_a_broker_cannot_be_moved(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UsageError, match="transport='memory'"):
        async with running(tmp_path / "data", file=file, transport="mqtt", clock=MovableClock()):
            pass


class Session(Struct):
    secret: Annotated[str, Cookie("session")]


jar = Contract("jar")


@jar.message
class Open(Request[Session]):
    pass


@jar.message
class See(Request[str]):
    session: Annotated[str, Cookie("session")] = ""


class Jar(Service):
    contract = jar

    @handles(http="POST /jar", allow=ANYONE)
    async def open(self, message: Open, ctx: Context) -> Session:
        return Session("s1")

    @handles(http="GET /jar", allow=ANYONE)
    async def see(self, message: See, ctx: Context) -> str:
        return message.session


async def test_the_client_keeps_cookies(tmp_path: Path) -> None:
    file = tmp_path / "callboard.toml"
    file.write_text(f'[services.jar]\nclass = "{__name__}:Jar"\n')
    async with running(tmp_path / "data", file=file) as project:
        await project.client.post("/jar")
        assert (await project.client.get("/jar")).json() == "s1"


async def test_events_are_streamed_to_the_client(tmp_path: Path, file: Path) -> None:
    async with running(tmp_path / "data", file=file) as project:
        user = project.client.as_user("o1", roles="operator")
        async with user.stream("GET", "/console/tail") as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            assert isinstance(await anext(lines), str)
