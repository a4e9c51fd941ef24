"""Load the settings from their defaults, the project file, and the environment, each overriding the one before.

`values.py` refuses what is unknown or has the wrong type. The settings of a service are checked once its class is known
(`project.py`).
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from config.foreign_variables import is_foreign
from config.settings import ServiceSettings, Settings
from config.values import PREFIX, SettingsError, Values, fields_of, holds_secret, variable_name
from runtime import Struct
from runtime.files import reread

DEFAULT_FILE = "callboard.toml"
_OTHER_FILE = "pyproject.toml"
"""Where the table `[tool.callboard]` is read if there is no `callboard.toml`."""
SERVICES = "CALLBOARD_SERVICES"
"""The variable that adds services to those of the file, as `package.module:Class,…`."""

_NOT_SETTINGS = frozenset({"CALLBOARD_BENCH_BROKER", "CALLBOARD_URL", "CALLBOARD_TOKEN"})
"""Variables with the prefix that commands read directly; they are not settings."""


FIELDS = {name: field for name, field in fields_of(Settings).items() if name != "services"}
"""All fields of the settings tree by full name, but those of services."""


def secret_variables(environment: Mapping[str, str], services: Iterable[str], *, except_service: str) -> set[str]:
    """Return the names of the environment variables that hold secrets, or name files with secrets.

    Args:
        environment: the environment variables.
        services: the services of the project. All variables with settings of theirs count.
        except_service: the service whose own settings do not.
    """
    others = [field for field in FIELDS.values() if not field.name.startswith(f"{except_service}.")]  # `gateway` has a section
    names = {variable_name(field.name) for field in others if field.secret or holds_secret(field.type)}
    names.add("CALLBOARD_TOKEN")
    return {
        name
        for name in environment
        if name.upper() in names
        or name.upper().removesuffix("_FILE") in names
        or ((own := own_setting(name, services)) is not None and own[0] != except_service)
        or ((owner := _database_of(name)) is not None and named(owner, services) != except_service)
    }


def _database_of(variable: str) -> str | None:
    """Return the service, as in the variable, whose database a variable names, or None."""
    match variable.upper().removesuffix("_FILE").removeprefix(PREFIX).lower().split("__"):
        case ["services", service, "database"]:
            return service
        case _:
            return None


def own_setting(variable: str, services: Iterable[str]) -> tuple[str, str] | None:
    """Return the service whose own setting a variable sets, and the setting's name, or None.

    `CALLBOARD_MAILER__KEY` is short for `CALLBOARD_SERVICES__MAILER__SETTINGS__KEY`.
    """
    words = _own_words(variable)
    name = None if words is None else named(words[0], services)
    return None if words is None or name is None else (name, words[1])


def named(word: str, services: Iterable[str]) -> str | None:
    """Return the service that a word of a variable means: it has `_` where the name may have `-`."""
    return next((name for name in services if name.replace("-", "_") == word.replace("-", "_")), None)


def _own_words(variable: str) -> tuple[str, str] | None:
    """Return the service, as in the variable, and the setting that a variable sets if there is such a service, or None."""
    if not variable.startswith(PREFIX):
        return None
    match variable.removeprefix(PREFIX).lower().split("__"):
        case ["services", service, "settings", *keys] if keys:
            return service, ".".join(keys)
        case [service, *keys] if keys and service not in FIELDS and service != "services":
            return service, ".".join(keys)
        case _:
            return None


def current(setting: str, value: str | None) -> Callable[[], str | None]:
    """Return a function that returns the present value of a setting, whose file is read again when it has changed.

    Args:
        setting: the full name.
        value: the value that was loaded.
    """
    path = os.environ.get(f"{variable_name(setting)}_FILE")
    return (lambda: value) if path is None or value is None else reread(path, value)


class Setting(NamedTuple):
    """A setting with its value and the place where it was set."""

    name: str
    value: Any
    source: str
    secret: bool


class Given:
    """What the file and the environment say of a service's own settings. They are checked when the class is known.

    Args:
        service: the name of the service, or its class, as long as that is all that is known of it.

    Attributes:
        candidates: variables that are its own if the service has the name in them: that name, the setting, and the text.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._tables: list[tuple[Mapping[str, Any], str]] = []
        self._variables: list[tuple[str, str, str]] = []
        self.candidates: dict[str, tuple[str, str, str]] = {}

    def __repr__(self) -> str:
        return f"<Given {self._service}>"

    def add_table(self, table: Mapping[str, Any], source: str) -> None:
        """Take a table of the file."""
        self._tables.append((table, source))

    def add_variable(self, setting: str, text: str, variable: str) -> None:
        """Take an environment variable."""
        self._variables.append((setting, text, variable))

    def values(self, name: str, cls: type[Struct] | None) -> Values:
        """Return the values for a struct of settings.

        Args:
            name: the name of the service.
            cls: the struct; None for a service that has no settings.

        Raises:
            SettingsError: if a setting is unknown.
        """
        values = Values(cls or _NoSettings, f"services.{name}.settings.")
        for table, source in self._tables:
            values.merge(table, source)
        for setting, text, variable in self._variables:
            values.set(setting, text, variable)
        for variable, (service, setting, text) in self.candidates.items():
            if service == name.replace("-", "_"):
                values.set(setting, text, variable)
        return values


class _NoSettings(Struct):
    """The settings of a service that has none."""


class Loaded(NamedTuple):
    """The loaded settings.

    Attributes:
        settings: the settings tree.
        sources: for each setting that was set explicitly, the file or the environment variable that set it.
    """

    settings: Settings
    sources: dict[str, str]


class _Entry:
    """What is set of a service: its entry in the project, and its own settings.

    Args:
        name: the name of the service.
    """

    def __init__(self, name: str) -> None:
        self.values = Values(ServiceSettings, f"services.{name}.", "settings")
        self.given = Given(name)

    def add_table(self, table: Any, source: str, name: str) -> None:
        """Take the table of the service."""
        if not isinstance(table, dict):
            raise SettingsError(f'{source}: {name}: expected a table, as [{name}] with class = "package.module:Class"')
        entry = cast(dict[str, Any], table)
        own = entry.get("settings", {})
        if not isinstance(own, dict):
            raise SettingsError(f"{source}: {name}.settings: expected a table, as [{name}.settings]")
        self.given.add_table(cast(dict[str, Any], own), source)
        self.values.merge({key: value for key, value in entry.items() if key != "settings"}, source)

    def converted(self) -> ServiceSettings:
        """Return the entry, with its own settings as they were given."""
        found: ServiceSettings = self.values.converted()
        return msgspec.structs.replace(found, settings=self.given)


def load(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Load the settings.

    Args:
        file: a TOML file. By default `callboard.toml` in the working directory, or else the table `[tool.callboard]` of
            `pyproject.toml`, if there is one.
        environment: the environment variables of the process.

    Raises:
        SettingsError: if a name is unknown, a value has the wrong type, or a file cannot be read.
    """
    table, source = _read_table(file)
    environment = environment or {}
    entries = _entries(table.pop("services", {}), source, environment)
    values = Values(Settings, without="services")
    for name in [name for name in entries if name in table and name not in FIELDS]:
        entries[name].given.add_table(table.pop(name), source)
    values.merge(table, source)
    unnamed = [entry for name, entry in entries.items() if ":" in name]
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS or variable == SERVICES:
            continue
        own, entry = own_setting(variable, entries), _entry_setting(variable)
        service = None if entry is None else named(entry[0], entries)
        if own is not None:
            entries[own[0]].given.add_variable(own[1], text, variable)
        elif entry is not None and service is not None:
            entries[service].values.set(entry[1], text, variable)
        elif is_foreign(variable, text):
            continue
        elif unnamed and (candidate := _own_words(variable)) is not None:
            for one in unnamed:
                one.given.candidates[variable] = (*candidate, text)
        else:
            values.set(variable.removeprefix(PREFIX).lower().replace("__", "."), text, variable)
    sources = values.sources
    for found in entries.values():
        sources = sources | found.values.sources
    services = {name: found.converted() for name, found in entries.items()}
    return Loaded(msgspec.structs.replace(values.converted(), services=services), sources)


def _entries(services: Any, source: str, environment: Mapping[str, str]) -> dict[str, _Entry]:
    """Return the entries of the services that the file and the environment name, in the order of starting."""
    entries: dict[str, _Entry] = {}
    paths: list[tuple[str, str]] = []
    if isinstance(services, dict):
        for name, table in cast(dict[str, Any], services).items():
            entries[name] = _Entry(name)
            entries[name].add_table(table, source, f"services.{name}")
    elif isinstance(services, list):
        for path in cast(list[Any], services):
            if not isinstance(path, str):
                raise SettingsError(f'{source}: services: expected "package.module:Class", got {path!r}')
            paths.append((path, source))
    else:
        raise SettingsError(
            f'{source}: services: expected a table for each service, as [services.rides] with class = "rides.service:Rides"'
        )
    for variable in sorted(environment):
        entry = _entry_setting(variable)
        if entry is not None and entry[1] == "class" and named(entry[0], entries) is None:
            entries[entry[0]] = _Entry(entry[0])
    paths += [(path.strip(), SERVICES) for path in environment.get(SERVICES, "").split(",") if path.strip()]
    for path, where in paths:  # the name is known once the class is imported
        if ":" not in path:
            raise SettingsError(f"{where}: {path!r}: expected package.module:Class")
        entries[path] = _Entry(path)
        entries[path].values.set("class", path, where)
    return entries


def _entry_setting(variable: str) -> tuple[str, str] | None:
    """Return the service whose entry a variable sets, and the name of the key, or None."""
    match variable.removeprefix(PREFIX).lower().split("__"):
        case ["services", service, *key] if key and variable.startswith(PREFIX):
            return service, ".".join(key)
        case _:
            return None


def _read_table(file: Path | None) -> tuple[dict[str, Any], str]:
    """Return the settings of the project's file, and its name."""
    if file is not None:
        return _read_toml(file), str(file)
    if Path(DEFAULT_FILE).exists():
        return _read_toml(Path(DEFAULT_FILE)), DEFAULT_FILE
    if Path(_OTHER_FILE).exists():
        table: Any = _read_toml(Path(_OTHER_FILE))
        for key in ("tool", "callboard"):
            table = table.get(key, {})
            if not isinstance(table, dict):
                raise SettingsError(f"{_OTHER_FILE}: tool.callboard: expected a table, as [tool.callboard]")
            table = cast(dict[str, Any], table)
        return table, f"{_OTHER_FILE}: tool.callboard"
    return {}, DEFAULT_FILE


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error
