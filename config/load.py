"""Load the settings from their defaults, the project file, and the environment, each overriding the one before.

Unknown names and values of the wrong type are refused. The settings of a service are checked once its class is known
(`project.py`).
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import msgspec

from config.foreign_variables import REMEDY, is_foreign, looks_foreign
from config.settings import ServiceSettings, Settings
from runtime import CallboardError, Struct
from runtime.contract.messages import secret_fields
from runtime.files import reread, text_of

PREFIX = "CALLBOARD_"
DEFAULT_FILE = "callboard.toml"
_OTHER_FILE = "pyproject.toml"
"""Where the table `[tool.callboard]` is read if there is no `callboard.toml`."""
SERVICES = "CALLBOARD_SERVICES"
"""The variable that adds services to those of the file, as `package.module:Class,…`."""
_MISSING = re.compile(r"Object missing required field `(\w+)`")

_NOT_SETTINGS = frozenset({"CALLBOARD_BENCH_BROKER", "CALLBOARD_URL", "CALLBOARD_TOKEN"})
"""Variables with the prefix that commands read directly; they are not settings."""


class SettingsError(CallboardError):
    """A setting that cannot be used. The text names the setting, where it was set, and what was expected."""


class MissingSetting(SettingsError):
    """A setting without a default is not set."""


class Field(NamedTuple):
    """A field of the settings tree: a single setting, or a section that contains further fields.

    Attributes:
        name: the full name, such as `gateway.port`.
        type: the annotated type; the class of a section.
        default: the default value, or `msgspec.NODEFAULT`.
        secret: whether the value must not be shown.
        attribute: the path of its attribute, which differs from the name if the struct renames its fields.
    """

    name: str
    type: Any
    default: Any
    secret: bool
    attribute: str

    @property
    def is_section(self) -> bool:
        """Whether the field is a section rather than a single setting."""
        return isinstance(self.type, type) and issubclass(self.type, Struct)


def fields_of(section: type[Struct], prefix: str = "") -> dict[str, Field]:
    """Return all fields of a struct of settings by full name. A section precedes the fields it contains."""
    return {field.name: field for field in _walk(section, prefix, "")}


def _walk(section: type[Struct], prefix: str, path: str) -> Iterator[Field]:
    secrets = secret_fields(section)
    for field in msgspec.structs.fields(section):
        found = Field(f"{prefix}{field.encode_name}", field.type, field.default, field.name in secrets, f"{path}{field.name}")
        yield found
        if found.is_section:
            yield from _walk(found.type, f"{found.name}.", f"{found.attribute}.")


FIELDS = {name: field for name, field in fields_of(Settings).items() if name != "services"}
"""All fields of the settings tree by full name, but those of services."""


def secret_variables(environment: Mapping[str, str], services: Iterable[str], *, except_service: str) -> set[str]:
    """Return the names of the environment variables that hold secrets, or name files with secrets.

    Args:
        environment: the environment variables.
        services: the services of the project. All variables with settings of theirs count.
        except_service: the service whose own settings do not.
    """
    names = {variable_name(field.name) for field in FIELDS.values() if field.secret or _holds_secret(field.type)}
    names.add("CALLBOARD_TOKEN")
    return {
        name
        for name in environment
        if name.upper() in names
        or name.upper().removesuffix("_FILE") in names
        or ((own := own_setting(name, services)) is not None and own[0] != except_service)
    }


def _holds_secret(tp: Any) -> bool:
    """Return whether a setting is a list of structs with secret fields."""
    return any(
        _holds_secret(arg) or (isinstance(arg, type) and issubclass(arg, msgspec.Struct) and bool(secret_fields(arg)))
        for arg in get_args(tp)
    )


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


class Values:
    """Values of settings by full name, and where they were set.

    Args:
        cls: the struct of the settings.
        prefix: the beginning of all their names.
        without: a field that is left out, because others decide it.

    Attributes:
        fields: all fields by full name.
        sources: for each setting that was set, the file or the environment variable that set it.
    """

    def __init__(self, cls: type[Struct], prefix: str = "", without: str = "") -> None:
        self.fields = {name: field for name, field in fields_of(cls, prefix).items() if name != f"{prefix}{without}"}
        self._by_variable = {variable_name(name): name for name in self.fields}
        self.sources: dict[str, str] = {}
        self._cls = cls
        self.prefix = prefix
        self._tree: dict[str, Any] = {}

    def merge(self, table: Mapping[str, Any], source: str) -> None:
        """Take the values of a table of a file."""
        self._merge(self._tree, table, self.prefix, source)
        for name in self.sources:
            self._check_name(name, source)

    def _merge(self, tree: dict[str, Any], given: Mapping[str, Any], prefix: str, source: str) -> None:
        for key, value in given.items():
            name = f"{prefix}{key}"
            if "." in key:
                raise SettingsError(f"{source}: {prefix}{key!r}: a key in quotes cannot contain dots: write it without quotes")
            if isinstance(value, dict) and (name not in self.fields or self.fields[name].is_section):
                self._merge(tree.setdefault(key, {}), cast(dict[str, Any], value), f"{name}.", source)
            else:
                tree[key] = value
                self.sources[name] = source

    def set(self, name: str, text: str, variable: str) -> None:
        """Take the text of an environment variable. A variable whose name ends in `_FILE` names a file with it.

        Args:
            name: the name of the setting without the prefix, such as `hashing.lanes`, or `hashing.lanes_file`.
        """
        if name.endswith("_file") and variable_name(f"{self.prefix}{name}") not in self._by_variable:
            name = name.removesuffix("_file")
            try:
                text = text_of(text)
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{variable}={text}: the file cannot be read: {error}") from error
        full = self._by_variable.get(variable_name(f"{self.prefix}{name}"), f"{self.prefix}{name}")
        self._check_name(full, variable)
        tree = self._tree
        *sections, key = full.removeprefix(self.prefix).split(".")
        for section in sections:
            tree = tree.setdefault(section, {})
        tree[key] = _parse(text, self.fields[full].type)
        self.sources[full] = variable

    def _check_name(self, name: str, source: str) -> None:
        field = self.fields.get(name)
        if field is not None and not field.is_section:
            return
        where = source if source.startswith(PREFIX) else f"{source}: {name}"
        if field is not None:
            inner = [other for other in self.fields if other.startswith(f"{name}.")]
            raise SettingsError(f"{where}: {name} is a section: set one of {', '.join(inner)}")
        near = difflib.get_close_matches(name, [other.name for other in self.fields.values() if not other.is_section], 1)
        hint = f": did you mean {near[0]} ({variable_name(near[0])})?" if near else ": `callboard config show` lists all settings"
        origin = f" ({REMEDY})" if looks_foreign(source) else ""
        raise SettingsError(f"{where}: unknown setting{hint}{origin}")

    def given(self, field: Field) -> Any:
        """Return the value of a field as it was given, or its default; None if it has neither."""
        found: Any = self._tree
        for key in field.name.removeprefix(self.prefix).split("."):
            if not isinstance(found, dict) or key not in found:
                return None if field.default is msgspec.NODEFAULT else field.default
            found = cast(dict[str, Any], found)[key]
        return found

    def converted(self) -> Any:
        """Return the struct with these values.

        Raises:
            MissingSetting: if one without a default is missing.
            SettingsError: if a value has the wrong type.
        """
        try:
            return msgspec.convert(_with_defaults(self._tree, self._cls), self._cls)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            name = f"{self.prefix}{path.rstrip('`').removeprefix('.')}".removesuffix(".")
            missing = _MISSING.fullmatch(text)
            if missing is not None and "[" not in name:
                name = ".".join(filter(None, (name, missing[1])))
                variable = variable_name(name)
                secret = name in self.fields and self.fields[name].secret
                raise MissingSetting(
                    f"{name} is not set: set {f'{variable}_FILE, the name of a file that contains it' if secret else variable}"
                ) from None
            setting = name.partition("[")[0]  # without the index into a list
            source = self.sources.get(setting, "")
            where = source if source.startswith(PREFIX) else f"{source or 'settings'}: {name}"
            field = self.fields.get(setting)
            if field is not None and (field.secret or _holds_secret(field.type)) and "'" in text:  # it shows the value
                raise SettingsError(f"{where}: the value, which is secret, is not one of those that are expected") from None
            expected = msgspec.inspect.type_info(None if field is None else field.type)
            choices = expected.values if isinstance(expected, msgspec.inspect.LiteralType) else ()
            hint = f": choose from {', '.join(map(str, choices))}" if choices else ""
            raise SettingsError(f"{where}: {text[0].lower()}{text[1:]}{hint}") from None
        except Exception as error:  # of the struct's own `__post_init__`
            raise SettingsError(
                f"{self.prefix.rstrip('.')}: {self._cls.__name__} refuses its values: {type(error).__name__}"
            ) from error


def _with_defaults(tree: dict[str, Any], section: type[Struct]) -> dict[str, Any]:
    """Return the values of a section with the defaults of its own sections below them, where only some of their fields are given."""
    found = dict(tree)
    for field in msgspec.structs.fields(section):
        given = tree.get(field.encode_name)
        if isinstance(given, dict) and isinstance(field.type, type) and issubclass(field.type, Struct):
            default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
            before: dict[str, Any] = msgspec.to_builtins(default, enc_hook=str) if isinstance(default, Struct) else {}
            found[field.encode_name] = _merged(before, _with_defaults(cast(dict[str, Any], given), field.type))
    return found


def _merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    found = before | after
    for key in before.keys() & after.keys():
        if isinstance(before[key], dict) and isinstance(after[key], dict):
            found[key] = _merged(before[key], after[key])
    return found


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
        case ["services", service, key] if variable.startswith(PREFIX):
            return service, key
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


def variable_name(setting: str) -> str:
    """Return the name of the environment variable that sets a setting, given the setting's full name."""
    return PREFIX + setting.replace(".", "__").replace("-", "_").upper()


def _parse(text: str, tp: Any) -> Any:
    """Return the text of an environment variable as a value of the setting's type.

    A text that does not have the expected form stays a text, so that validation reports it.
    """
    return _parsed(text, msgspec.inspect.type_info(tp))


def _parsed(text: str, info: msgspec.inspect.Type) -> Any:
    match info:
        case msgspec.inspect.UnionType(types=types):
            parts = [part for part in types if not isinstance(part, msgspec.inspect.NoneType)]
            return _parsed(text, parts[0]) if len(parts) == 1 else text
        case msgspec.inspect.Metadata(type=inner):
            return _parsed(text, inner)
        case msgspec.inspect.CollectionType(item_type=item):
            if text.lstrip().startswith("["):
                return _decoded(text)
            return [_parsed(part.strip(), item) for part in text.split(",") if part.strip()]
        case msgspec.inspect.TupleType() | msgspec.inspect.DictType() | msgspec.inspect.StructType():
            return _decoded(text)
        case msgspec.inspect.BoolType():
            return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
        case msgspec.inspect.IntType():
            return _number(text, int)
        case msgspec.inspect.FloatType():
            return _number(text, float)
        case _:
            return text


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text
