"""A service of the user that cannot be used is reported in one line that names the place and the remedy."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from config import compose
from config.packages import import_own_packages
from config.project import BrokenService, UnknownService
from config.settings import ServiceSettings, Settings
from runtime import CallboardError, DefinitionError, StartError
from runtime.node.factory import make

SERVICE = """
{head}
from runtime import ANYONE, Context, Contract, Request, Service, handles

parlour = Contract("parlour")


@parlour.message
class Greet(Request[str]):
    pass


class Parlour(Service):
    contract = parlour

    def __init__(self) -> None:
        {init}

    @handles({arguments})
    async def greet(self, message: Greet, ctx: Context) -> str:
        return ""
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory. Its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(file: Path, *, head: str = "", init: str = "pass", arguments: str = "allow=ANYONE") -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(SERVICE.format(head=head, init=init, arguments=arguments))


def parlour(service: str) -> Settings:
    return Settings(services={"parlour": ServiceSettings(service)})


def refusal(service: str) -> CallboardError:
    """Return the error for a service, which is one line."""
    with pytest.raises(CallboardError) as caught:
        make(compose.chosen(parlour(service), ["parlour"])["parlour"])
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_service_in_the_working_directory_is_found(folder: Path) -> None:
    write(folder / "hall" / "service.py")
    assert list(compose.catalogue(parlour("hall.service:Parlour"))) == ["parlour", "gateway"]


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("hall.servce:Parlour", "there is no module hall.servce in {folder} or on the path: did you mean hall.service?"),
        ("hal.service:Parlour", "there is no module hal in {folder} or on the path: did you mean hall?"),
        ("hall.service:Parlor", "hall.service has no Parlor: did you mean hall.service:Parlour?"),
        ("hall.service:Context", "is not a subclass of Service: hall.service has Parlour"),
        ("hall.service", "expected package.module:Class"),
    ],
)
def test_a_wrong_setting_names_what_is_missing(folder: Path, service: str, expected: str) -> None:
    write(folder / "hall" / "service.py")
    error = refusal(service)
    assert isinstance(error, UnknownService)
    assert expected.format(folder=folder) in str(error)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("import hal.messages", "hall/service.py:2: there is no module hal: install its package, or correct the import"),
        ("from runtime import Contextt", "hall/service.py:2: ImportError: cannot import name 'Contextt'"),
        ("x = = 1", "hall/service.py:2: SyntaxError: invalid syntax"),
        ("x = y", "hall/service.py:2: NameError: name 'y' is not defined"),
        ("x = {}['key']", "hall/service.py:2: KeyError: 'key'"),
        (
            "import sys; sys.exit()",
            "hall/service.py:2: the module ends the process (sys.exit) when it is imported: move that into",
        ),
        ("raise SystemExit('over')", "hall/service.py:2: the module ends the process"),
    ],
)
def test_code_that_cannot_be_imported_is_reported_with_its_line(folder: Path, head: str, expected: str) -> None:
    write(folder / "hall" / "service.py", head=head)
    error = refusal("hall.service:Parlour")
    assert isinstance(error, BrokenService)
    assert expected in str(error)


@pytest.mark.parametrize(
    ("head", "init", "line"),
    [("import os; os.environ['PARLOUR_KEY']", "pass", 2), ("import os", "self.key = os.environ['PARLOUR_KEY']", 17)],
)
def test_a_missing_environment_variable_is_named_with_its_line(folder: Path, head: str, init: str, line: int) -> None:
    write(folder / "hall" / "service.py", head=head, init=init)
    error = refusal("hall.service:Parlour")
    assert isinstance(error, StartError)
    assert f"hall/service.py:{line}: the environment variable PARLOUR_KEY is not set: set it" in str(error)


def test_a_definition_error_names_file_and_line(folder: Path) -> None:
    write(folder / "hall" / "service.py", arguments="allow=None")
    error = refusal("hall.service:Parlour")
    assert isinstance(error, DefinitionError)
    assert str(error).startswith("hall/service.py:19: Parlour.greet: say who may call")


# Names of Callboard's packages


@pytest.mark.parametrize("name", ["config", "gateway", "runtime", "transports"])
@pytest.mark.parametrize("kind", ["file", "package", "folder"])
def test_a_module_that_has_the_name_of_one_of_our_packages_is_named(folder: Path, name: str, kind: str) -> None:
    file = folder / f"{name}.py" if kind == "file" else folder / name / "parlour.py"
    write(file)
    if kind == "package":
        (folder / name / "__init__.py").write_text("")
    error = refusal(f"{name}:Parlour" if kind == "file" else f"{name}.parlour:Parlour")
    what = "rename the file" if kind == "file" else "rename the folder"
    shown = f"{name}.py" if kind == "file" else f"{name}/"
    assert f"{shown} is hidden by Callboard's own package {name}: {what}" in str(error)


@pytest.mark.parametrize("head", ["from config import KEY", "import config\nconfig.KEY", "import config.keys"])
def test_a_service_that_imports_its_own_config_learns_to_rename_it(folder: Path, head: str) -> None:
    (folder / "config.py").write_text("KEY = 1")
    write(folder / "hall" / "service.py", head=head)
    assert "config.py is hidden by Callboard's own package config: rename the file" in str(refusal("hall.service:Parlour"))


def test_services_in_a_folder_of_that_name_are_found(folder: Path) -> None:
    write(folder / "services" / "parlour.py")
    assert compose.definitions(parlour("services.parlour:Parlour"), ["parlour"])


def test_a_services_folder_that_is_a_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "services")  # its path still has the folders of other tests
    import_own_packages()
    write(folder / "services" / "parlour.py")
    (folder / "services" / "__init__.py").write_text("")
    assert "services/__init__.py hides this folder: remove that file" in str(refusal("services.parlour:Parlour"))


def test_our_packages_are_imported_wherever_the_path_leads(folder: Path) -> None:
    for name in ("config", "gateway", "runtime", "services", "transports"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise AssertionError('it is not ours')")
    kept: dict[str, ModuleType] = {
        name: sys.modules.pop(name) for name in ("gateway", "runtime", "services", "transports") if name in sys.modules
    }
    try:
        import_own_packages()
        assert all(str(folder) not in str(getattr(sys.modules[name], "__path__", "")) for name in kept)
        assert sys.path[0] == ""
    finally:
        sys.modules.update(kept)
