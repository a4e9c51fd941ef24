"""The project file: the services that it lists, and their own settings."""

import sys
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config import compose
from config.cli.main import cli
from config.cli.show import config_show
from config.console import with_console
from config.console_source import console_source
from config.doctor import examine
from config.load import load
from config.packages import ROOT
from config.settings import EXAMPLE_USERS
from config.users import with_users
from config.values import SettingsError
from runtime import CallboardError, Contract, DefinitionError, Service, StartError, Struct
from runtime.node.factory import make
from tests.project import RENTAL

_MODULE = '''
from typing import Annotated

from msgspec import Meta

from runtime import ANYONE, Context, Contract, Request, Secret, Service, Struct, handles

mailer = Contract("{name}")


class Limits(Struct):
    """How much is sent."""

    per_hour: Annotated[int, Meta(ge=1)] = 100
    """Messages of one user."""


class MailerSettings(Struct):
    """The settings of the mailer."""

    api_key: Secret[str]
    """The key of the provider."""
    sender: str = "nobody@example.com"
    limits: Limits = Limits()
    domains: tuple[str, ...] = ()
    words_file: str = ""


@mailer.message
class GetSender(Request[str]):
    """Who sends?"""


class Mailer(Service):
    contract = mailer
    Settings = MailerSettings
    settings: MailerSettings

    @handles(http="GET /sender", allow=ANYONE)
    async def get_sender(self, message: GetSender, ctx: Context) -> str:
        return self.settings.sender


class Plain(Service):
    contract = Contract("plain")
'''


class Base(Service):
    contract = Contract("base")


PROJECT = '[services.mailer]\nclass = "post.service:Mailer"\n[services.plain]\nclass = "post.service:Plain"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a project. Its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    before = set(sys.modules)
    (tmp_path / "post").mkdir()
    (tmp_path / "post" / "service.py").write_text(_MODULE.format(name="mailer"))
    (tmp_path / "callboard.toml").write_text(PROJECT)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def made(environment: Mapping[str, str], name: str = "mailer") -> Service:
    """Return a service as the runtime makes it."""
    return make(compose.chosen(load(None, environment).settings, [name])[name])


def refusal(environment: Mapping[str, str], name: str = "mailer") -> str:
    with pytest.raises(CallboardError) as caught:
        made(environment, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_services_of_the_file_start_in_its_order(folder: Path) -> None:
    assert list(compose.catalogue(load().settings)) == ["mailer", "plain", "gateway"]
    (folder / "callboard.toml").rename(folder / "elsewhere.toml")
    assert list(compose.catalogue(load(folder / "elsewhere.toml").settings)) == ["mailer", "plain", "gateway"]
    tables = PROJECT.replace("[services", "[tool.callboard.services")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "post"\n{tables}[tool.callboard.gateway]\nport = 7\n')
    loaded = load()
    assert list(compose.catalogue(loaded.settings)) == ["mailer", "plain", "gateway"]
    assert (loaded.settings.gateway.port, loaded.sources["gateway.port"]) == (7, "pyproject.toml: tool.callboard")


def test_the_file_and_variables_set_the_settings_of_a_service(folder: Path) -> None:
    with (folder / "callboard.toml").open("a") as file:
        file.write('[services.mailer.settings]\nsender = "a@b.c"\napi_key = "of the file"\nlimits = { per_hour = 5 }\n')
    (folder / "key").write_text("of a secret's file\n")
    assert made({}).settings.sender == "a@b.c"
    settings = made(
        {
            "CALLBOARD_SERVICES__MAILER__SETTINGS__API_KEY_FILE": "key",
            "CALLBOARD_SERVICES__MAILER__SETTINGS__DOMAINS": "a.org, b.org",
            "CALLBOARD_SERVICES__MAILER__SETTINGS__WORDS_FILE": "no such file",
            "CALLBOARD_MAILER__LIMITS__PER_HOUR": "7",
        }
    ).settings
    assert (settings.api_key, settings.domains, settings.limits.per_hour, settings.sender, settings.words_file) == (
        "of a secret's file", ("a.org", "b.org"), 7, "a@b.c", "no such file",
    )  # fmt: skip
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "services.mailer.settings.api_key is not set: set CALLBOARD_SERVICES__MAILER__SETTINGS__API_KEY_FILE"),
        ({"CALLBOARD_SERVICES__MAILER__SETTINGS__SENDR": "x"}, "SENDR: unknown setting: did you mean services.mailer.settings.sender"),
        ({"CALLBOARD_MAILER__LIMITS__PER_HOUR": "many"}, "CALLBOARD_MAILER__LIMITS__PER_HOUR: expected `int`, got `str`"),
        ({"CALLBOARD_MAILER__LIMITS__PER_HOUR": "0"}, "CALLBOARD_MAILER__LIMITS__PER_HOUR: expected `int` >= 1"),
        ({"CALLBOARD_MAILER__LIMITS": "0"}, "services.mailer.settings.limits is a section: set one of services.mailer.settings.limits.per_hour"),
        ({"CALLBOARD_MAILER__API_KEY_FILE": "nowhere"}, "CALLBOARD_MAILER__API_KEY_FILE=nowhere: the file cannot be read"),
        ({"CALLBOARD_SERVICES__MAILER__CLAS": "x"}, "CLAS: unknown setting: did you mean services.mailer.class"),
        ({"CALLBOARD_SERVICES__MALER__SETTINGS__API_KEY": "x"}, "CALLBOARD_SERVICES__MALER__SETTINGS__API_KEY: unknown setting"),
        ({"CALLBOARD_SERVICES__MAILER__REPLICAS": "0"}, "CALLBOARD_SERVICES__MAILER__REPLICAS: expected `int` >= 1"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_a_service_is_one_line(environment: dict[str, str], expected: str) -> None:
    if "API_KEY" not in "".join(environment) and environment:
        environment = {**environment, "CALLBOARD_MAILER__API_KEY": "k"}
    assert expected in refusal(environment)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[services.mailer.settings]\nsendr = 1\n", "callboard.toml: services.mailer.settings.sendr: unknown setting: did you mean"),
        ("[services.mailer.settings]\nsender = 1\n", "callboard.toml: services.mailer.settings.sender: expected `str`, got `int`"),
        ("[services.plain.settings]\nsender = 1\n", "callboard.toml: services.plain.settings.sender: unknown setting"),
        ("[services.other]\nreplicas = 1\n", "services.other.class is not set"),
        ("[services.other]\nclas = 'a:B'\n", "callboard.toml: services.other.clas: unknown setting: did you mean services.other.class"),
        ("[services.other]\nclass = 'post.service:Plain'\n", "call this table [services.plain]"),
        ("[services.gateway]\nclass = 'post.service:Plain'\n", "call this table [services.plain]"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(folder: Path, text: str, expected: str) -> None:
    with (folder / "callboard.toml").open("a") as file:
        file.write(text)
    name = "plain" if "plain" in text else "mailer"
    assert expected in refusal({"CALLBOARD_MAILER__API_KEY": "k"}, name)


@pytest.mark.parametrize("services", ["5", "'a'", "[5]"])
def test_services_of_another_form_are_refused(folder: Path, services: str) -> None:
    (folder / "callboard.toml").write_text(f"services = {services}\n")
    with pytest.raises(CallboardError, match=r"services.*: .*expected"):
        compose.catalogue(load().settings)


def test_definitions_are_read_without_making_a_service(folder: Path) -> None:
    settings = load().settings  # without the key that the mailer needs
    assert [manifest.service for manifest in compose.manifests(settings)] == ["mailer", "plain", "gateway"]
    assert made({}, "plain").settings is None
    with pytest.raises(SettingsError):
        compose.chosen(settings, [])


async def test_a_service_may_have_its_database_elsewhere(folder: Path) -> None:
    variable = "CALLBOARD_SERVICES__PLAIN__DATABASE"
    settings = load(None, {variable: str(folder / "disk" / "mine.sqlite"), "CALLBOARD_DATABASE__FOLDER": "data"}).settings
    for service, file in (("plain", "disk/mine.sqlite"), ("mailer", "data/mailer.sqlite")):
        database = compose.databases(settings)(service)
        await database.open()
        await database.close()
        assert (folder / file).exists()
    with pytest.raises(SettingsError, match=f"{variable}: expected `str` matching regex"):
        load(None, {variable: "mine.db"})


def test_all_settings_are_listed_with_their_sources(folder: Path) -> None:
    loaded = load(None, {"CALLBOARD_MAILER__API_KEY": "k"})
    rows = {row.name: row for row in compose.rows(loaded)}
    assert rows["services.mailer.class"][1:3] == ("post.service:Mailer", "callboard.toml")
    key = rows["services.mailer.settings.api_key"]
    assert (key.value, key.source, key.secret) == ("k", "CALLBOARD_MAILER__API_KEY", True)
    assert rows["services.mailer.settings.limits.per_hour"][1:] == (100, "default", False)
    assert rows["gateway.port"].value == 8000
    rows = {row.name: row for row in compose.rows(load(None, {"CALLBOARD_MAILER__LIMITS__PER_HOUR": "7"}))}
    assert rows["services.mailer.settings.api_key"][1:] == (None, "not set", True)
    assert rows["services.mailer.settings.limits.per_hour"][1:3] == (7, "CALLBOARD_MAILER__LIMITS__PER_HOUR")
    assert rows["services.mailer.settings.sender"][1:3] == ("nobody@example.com", "default")


def test_what_dev_makes_of_the_settings_is_listed_as_its_own(tmp_path: Path) -> None:
    loaded = load(ROOT / "callboard.toml", {"CALLBOARD_DATABASE__FOLDER": str(tmp_path), "CALLBOARD_GATEWAY__PORT": "7"})
    settings = with_console(with_users(loaded.settings))
    rows = {row.name: row for row in compose.rows(loaded, settings)}
    changed = {name for name, row in rows.items() if row.source == "callboard dev"}
    assert changed == {"dev.password", "identity.issuers", "services.auth.settings.users"}
    assert len(rows["services.auth.settings.users"].value) == len(EXAMPLE_USERS)
    assert rows["gateway.port"][1:3] == (7, "CALLBOARD_GATEWAY__PORT")
    shown = console_source(loaded, settings).settings()
    assert str(settings.dev.password) not in str(shown)
    assert {row["setting"] for row in shown if row["source"] == "callboard dev"} == changed


_KINDS = """
from pathlib import Path
from typing import Literal, NamedTuple

from runtime import Contract, Secret, Service, Struct


class Account(Struct):
    name: str
    key: Secret[str] = ""


class Pair(NamedTuple):
    name: str
    key: Secret[str]


class Limits(Struct, rename="camel"):
    most_lines: int = 1
    per_hour: int = 2


class Kinds(Struct):
    number: int | None = None
    on: bool | None = None
    part: float | None = None
    numbers: tuple[int, ...] = ()
    words: frozenset[str] = frozenset()
    pair: tuple[int, str] | None = None
    table: dict[str, int] = {}
    account: Account | None = None
    accounts: tuple[Account, ...] = ()
    pairs: tuple[Pair, ...] = ()
    limits: Limits = Limits(5, 6)
    api_env_key: str = ""
    word: Secret[Literal["one", "two"]] = "one"
    keys: tuple[Secret[str], ...] = ()
    folder: Path = Path("a")


class Shop(Service):
    contract = Contract("my-shop")
    Settings = Kinds
    migrations = "migrations"
"""


@pytest.fixture
def shop(folder: Path) -> Path:
    """A project with a service whose name has a hyphen, and whose settings are of many types."""
    (folder / "shop.py").write_text(_KINDS)
    (folder / "callboard.toml").write_text('[services.my-shop]\nclass = "shop:Shop"\n')
    return folder


def settings_of(environment: dict[str, str]) -> Any:
    return compose.own_settings(load(None, environment).settings, "my-shop")


@pytest.mark.parametrize("prefix", ["CALLBOARD_MY_SHOP__", "CALLBOARD_SERVICES__MY_SHOP__SETTINGS__"])
@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("NUMBER", "3", "number", 3),
        ("ON", "true", "on", True),
        ("PART", "2.5", "part", 2.5),
        ("NUMBERS", "1, 2", "numbers", (1, 2)),
        ("NUMBERS", "[1,2]", "numbers", (1, 2)),
        ("WORDS", "a,b", "words", {"a", "b"}),
        ("PAIR", '[1,"b"]', "pair", (1, "b")),
        ("TABLE", '{"a":1}', "table", {"a": 1}),
        ("ACCOUNT", '{"name":"a"}', "account.name", "a"),
        ("LIMITS__MOSTLINES", "9", "limits.most_lines", 9),
        ("LIMITS__MOSTLINES", "9", "limits.per_hour", 6),
        ("API_ENV_KEY", "x", "api_env_key", "x"),
    ],
)  # fmt: skip
def test_variables_set_settings_of_every_type(
    shop: Path, prefix: str, variable: str, text: str, attribute: str, value: object
) -> None:
    assert attrgetter(attribute)(settings_of({f"{prefix}{variable}": text})) == value


def test_a_service_with_a_hyphen_has_variables_too(shop: Path) -> None:
    settings = load(
        None, {"CALLBOARD_SERVICES__MY_SHOP__REPLICAS": "2", "CALLBOARD_SERVICES__MY_SHOP__CLASS": "shop:Shop"}
    ).settings
    assert compose.replicas(settings, "my-shop") == 2
    assert list(settings.services) == ["my-shop"]


def test_no_secret_is_shown_wherever_it_is(shop: Path) -> None:
    accounts = '[{"name":"a","key":"HUSH"}]'
    (shop / "callboard.toml").write_text(
        "[services.my-shop]\nclass = 'shop:Shop'\n[services.my-shop.settings]\nkeys = ['HUSH']\naccount = {name = 'a', key = 'HUSH'}\n"
    )
    urls = {f"CALLBOARD_{name}": "postgresql://shop:HUSH@db/shop" for name in ("DATABASE__URL", "SERVICES__MY_SHOP__DATABASE")}
    environment = {
        "CALLBOARD_MY_SHOP__ACCOUNTS": accounts,
        "CALLBOARD_MY_SHOP__PAIRS": '[["a","HUSH"]]',
        "CALLBOARD_GATEWAY__PORT": "7",
        **urls,
    }
    for arguments in ([], ["--json"]):
        shown = CliRunner(env=environment).invoke(config_show, arguments).output
        assert "account" in shown
        assert "my-shop.settings.folder" in shown
        assert "HUSH" not in shown
    assert "HUSH" not in repr(settings_of(environment))
    with pytest.raises(SettingsError) as refused:
        settings_of({"CALLBOARD_MY_SHOP__WORD": "HUSH"})
    assert str(refused.value) == "CALLBOARD_MY_SHOP__WORD: the value, which is secret, is not one of those that are expected"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:HU/SH@db/shop",
        "postgresql://shop:HU#SH@db/shop",
        "postgresql://shop:HU?SH@db/shop",
        "postgresql://shop:HU[SH@db/shop",
        "postgresql://shop:HUSH/1@db:5432/shop",
        "postgresql://shop:HUSH@db:port/shop",
        "mysql://shop:HUSH@db/shop",
    ],
)
@pytest.mark.parametrize("variable", ["CALLBOARD_DATABASE__URL", "CALLBOARD_SERVICES__MY_SHOP__DATABASE"])
@pytest.mark.parametrize("command", ["config check", "migrate", "backup my-shop b", "doctor my-shop", "deploy compose"])
def test_a_url_whose_password_is_not_encoded_is_refused_and_not_shown(
    shop: Path, variable: str, url: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "migrations").mkdir()
    monkeypatch.setenv(variable, url)
    done = CliRunner().invoke(cli, command.split())
    said = f"{done.output}{done.exception!r}"
    assert "SH" not in said.replace(variable, "")
    assert done.exit_code != 0
    assert variable in said
    assert "shop:HU" not in "".join(file.read_text() for file in shop.rglob("*") if file.is_file() and file.suffix != ".pyc")


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\ncallboard = 3"])
def test_a_pyproject_without_a_table_is_one_line(folder: Path, text: str) -> None:
    (folder / "callboard.toml").unlink()
    (folder / "pyproject.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"pyproject\.toml: tool\.callboard: expected a table"):
        load()


async def test_the_doctor_finds_what_is_not_set(folder: Path) -> None:
    findings = [one async for one in examine(load(), [])]
    [fault] = [one for one in findings if one.state == "fault"]
    assert fault.what == "settings of mailer"
    assert "api_key is not set" in fault.said
    findings = [one async for one in examine(load(None, {"CALLBOARD_MAILER__API_KEY": "k"}), [])]
    assert not [one for one in findings if one.state == "fault"]


def test_a_folder_without_a_project_says_so(folder: Path) -> None:
    (folder / "callboard.toml").unlink()
    for names in ((), ("mailer",)):
        with pytest.raises(compose.NoProject, match="no project here"):
            compose.chosen(load().settings, names)
    assert list(compose.chosen(load().settings, ["gateway"])) == ["gateway"]


def test_variables_alone_make_a_project(folder: Path) -> None:
    (folder / "callboard.toml").unlink()
    for environment in (
        {"CALLBOARD_SERVICES": "post.service:Mailer,post.service:Plain"},
        {"CALLBOARD_SERVICES__MAILER__CLASS": "post.service:Mailer", "CALLBOARD_SERVICES__PLAIN__CLASS": "post.service:Plain"},
    ):
        assert list(compose.catalogue(load(None, environment).settings)) == ["mailer", "plain", "gateway"]
    environment = {"CALLBOARD_SERVICES": "post.service:Mailer", "CALLBOARD_MAILER__API_KEY": "k", "CALLBOARD_MALER__SENDER": "x"}
    assert "CALLBOARD_MALER__SENDER: unknown setting: there is neither a section nor a service maler" in refusal(environment)
    del environment["CALLBOARD_MALER__SENDER"]
    assert made(environment).settings.api_key == "k"
    (folder / "callboard.toml").write_text(PROJECT)
    assert list(compose.catalogue(load(None, environment).settings)) == ["mailer", "plain", "gateway"], "named twice"
    (folder / "callboard.toml").unlink()
    (folder / "post" / "service.py").write_text(_MODULE.format(name="my-mailer"))
    sys.modules.pop("post.service")
    environment = {"CALLBOARD_SERVICES__MY_MAILER__CLASS": "post.service:Mailer", "CALLBOARD_MY_MAILER__API_KEY": "k"}
    assert made(environment, "my-mailer").settings.api_key == "k"


def test_a_service_made_in_python_has_its_defaults_or_names_what_it_needs() -> None:
    class Some(Struct):
        level: int = 3

    class Needs(Struct):
        level: int
        name: str

    class WithDefaults(Base):
        Settings = Some

    class WithNeeds(Base):
        Settings = Needs

    assert WithDefaults().settings == Some()
    assert WithDefaults(Some(5)).settings.level == 5
    with pytest.raises(StartError, match=r"WithNeeds needs settings \(level, name\): .*partial\(WithNeeds, Needs\(…\)\)"):
        WithNeeds()


def test_settings_of_a_wrong_kind_are_refused_when_the_class_is_defined() -> None:
    with pytest.raises(DefinitionError, match="expected a subclass of Struct"):

        class Wrong(Base):
            Settings = dict  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]  # the mistake under test

    with pytest.raises(DefinitionError, match="__init__ takes no settings: def __init__"):

        class NoRoom(Base):
            Settings = Struct

            def __init__(self) -> None:
                super().__init__()


def test_the_rental_is_the_project_of_this_repository() -> None:
    assert list(RENTAL.services) == ["auth", "wallet", "fleet", "rides", "notices", "devices"]
