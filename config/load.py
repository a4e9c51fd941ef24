"""Load the settings from their defaults, a TOML file, and the environment, each overriding the one before.

Unknown names and values of the wrong type are refused.
"""

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import msgspec

from config.foreign_variables import REMEDY, is_foreign, looks_foreign
from config.settings import Settings
from runtime import CallboardError, Struct
from runtime.files import reread, text_of

PREFIX = "CALLBOARD_"
DEFAULT_FILE = "callboard.toml"

_NOT_SETTINGS = frozenset({"CALLBOARD_BENCH_BROKER", "CALLBOARD_URL", "CALLBOARD_TOKEN"})
"""Variables with the prefix that commands read directly; they are not settings."""


class SettingsError(CallboardError):
    """A setting that cannot be used. The text names the setting, where it was set, and what was expected."""


class Field(NamedTuple):
    """A field of the settings tree: a single setting, or a section that contains further fields.

    Attributes:
        name: the full name, such as `gateway.port`.
        type: the annotated type; the class of a section.
        default: the default value, or `msgspec.NODEFAULT`.
        secret: whether the value must not be shown.
    """

    name: str
    type: Any
    default: Any
    secret: bool

    @property
    def is_section(self) -> bool:
        """Whether the field is a section rather than a single setting."""
        return isinstance(self.type, type) and issubclass(self.type, Struct)


def _walk(section: type[Struct], prefix: str = "") -> Iterator[Field]:
    for field in msgspec.structs.fields(section):
        found = Field(f"{prefix}{field.name}", field.type, field.default, field.name in section.__secret__)
        yield found
        if found.is_section:
            yield from _walk(found.type, f"{found.name}.")


FIELDS = {field.name: field for field in _walk(Settings)}
"""All fields of the settings tree by full name. A section precedes the fields it contains."""


def secret_variables(environment: Mapping[str, str], *, except_section: str | None = None) -> set[str]:
    """Return the names of the environment variables that hold secrets, or name files with secrets.

    Args:
        environment: the environment variables.
        except_section: the section of the settings whose secrets are left out.
    """
    sections = {field.name for field in FIELDS.values() if field.secret or _holds_secret(field.type)}
    secrets = {name for name in sections if name.partition(".")[0] != except_section}
    names = {variable_name(name) for name in secrets} | {"CALLBOARD_TOKEN"}
    return {name for name in environment if name in names or name.removesuffix("_FILE") in names}


def _holds_secret(tp: Any) -> bool:
    """Return whether a setting is a list of structs with secret fields."""
    return any(isinstance(arg, type) and issubclass(arg, Struct) and bool(arg.__secret__) for arg in get_args(tp))


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


class Loaded(NamedTuple):
    """The loaded settings.

    Attributes:
        settings: the settings tree.
        sources: for each setting that was set explicitly, the file or the environment variable that set it.
    """

    settings: Settings
    sources: dict[str, str]

    def rows(self) -> Iterator[Setting]:
        """Yield every setting with its value and source."""
        for field in FIELDS.values():
            if not field.is_section:
                value = attrgetter(field.name)(self.settings)
                yield Setting(field.name, value, self.sources.get(field.name, "default"), field.secret)


def load(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Load the settings.

    Args:
        file: a TOML file. By default `callboard.toml` in the working directory, if it exists.
        environment: the environment variables of the process.

    Raises:
        SettingsError: if a name is unknown, a value has the wrong type, or a file cannot be read.
    """
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = file or Path(DEFAULT_FILE)
    if file is not None or path.exists():
        _merge(tree, _read_toml(path), "", str(path), sources)
        for name in sources:
            _check_name(name, str(path))
    for name, value in sorted((environment or {}).items()):
        if name.startswith(PREFIX) and name not in _NOT_SETTINGS and not is_foreign(name, value):
            _set(tree, name, value, sources)
    return Loaded(_convert(tree, sources), sources)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error


def _merge(tree: dict[str, Any], given: Mapping[str, Any], prefix: str, source: str, sources: dict[str, str]) -> None:
    for key, value in given.items():
        name = f"{prefix}{key}"
        if "." in key:
            raise SettingsError(f"{source}: {prefix}{key!r}: a key in quotes cannot contain dots: write it without quotes")
        if isinstance(value, dict):
            section: dict[str, Any] = tree.setdefault(key, {})
            _merge(section, cast(dict[str, Any], value), f"{name}.", source, sources)
        else:
            tree[key] = value
            sources[name] = source


def _set(tree: dict[str, Any], variable: str, value: str, sources: dict[str, str]) -> None:
    words = variable.removeprefix(PREFIX).lower()
    if words.endswith("_file") and words.replace("__", ".") not in FIELDS:
        words = words.removesuffix("_file")
        try:
            value = text_of(value)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}={value}: the file cannot be read: {error}") from error
    keys = words.split("__")
    _check_name(".".join(keys), variable)
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    sources[".".join(keys)] = variable


def _check_name(name: str, source: str) -> None:
    field = FIELDS.get(name)
    if field is not None and not field.is_section:
        return
    where = source if source.startswith(PREFIX) else f"{source}: {name}"
    if field is not None:
        inner = [other for other in FIELDS if other.startswith(f"{name}.")]
        raise SettingsError(f"{where}: {name} is a section: set one of {', '.join(inner)}")

    near = difflib.get_close_matches(name, [other.name for other in FIELDS.values() if not other.is_section], 1)
    hint = f": did you mean {near[0]} ({variable_name(near[0])})?" if near else ": `callboard config show` lists all settings"
    origin = f" ({REMEDY})" if looks_foreign(source) else ""
    raise SettingsError(f"{where}: unknown setting{hint}{origin}")


def variable_name(setting: str) -> str:
    """Return the name of the environment variable that sets a setting, given the setting's full name."""
    return PREFIX + setting.replace(".", "__").upper()


def _convert(tree: dict[str, Any], sources: dict[str, str]) -> Settings:
    parsed = _parse_strings(tree, sources)
    try:
        return msgspec.convert(parsed, Settings)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        setting = name.partition("[")[0]  # without the index into a list
        source = sources.get(setting, "")
        where = source if source.startswith(PREFIX) else f"{source or 'settings'}: {name}"
        expected = msgspec.inspect.type_info(FIELDS[setting].type if setting in FIELDS else None)
        choices = expected.values if isinstance(expected, msgspec.inspect.LiteralType) else ()
        hint = f": choose from {', '.join(map(str, choices))}" if choices else ""
        raise SettingsError(f"{where}: {text[0].lower()}{text[1:]}{hint}") from None


def _parse_strings(tree: dict[str, Any], sources: dict[str, str], prefix: str = "") -> dict[str, Any]:
    """Return the tree with strings from the environment converted to the type of their setting.

    A string that does not have the expected form stays a string, so that validation reports it.
    """
    result: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            result[key] = _parse_strings(cast(dict[str, Any], value), sources, f"{name}.")
        elif isinstance(value, str) and sources.get(name, "").startswith(PREFIX):
            result[key] = _parse_string(value, FIELDS[name].type)
        else:
            result[key] = value
    return result


def _parse_string(text: str, tp: Any) -> Any:
    info = msgspec.inspect.type_info(tp)
    if isinstance(info, msgspec.inspect.VarTupleType):
        if text.lstrip().startswith("["):
            try:
                return msgspec.json.decode(text)
            except msgspec.DecodeError:
                return text
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(info, msgspec.inspect.BoolType):
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        kind: type = int if isinstance(info, msgspec.inspect.IntType) else float
        try:
            return kind(text)
        except ValueError:
            return text
    return text
