"""Loading settings: defaults, then a file, then the environment. Whatever is unknown or of the wrong type is refused."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from config.settings import Settings
from runtime import CallboardError, Struct

PREFIX = "CALLBOARD_"
DEFAULT_FILE = "callboard.toml"

_NOT_SETTINGS = frozenset({"CALLBOARD_BENCH_BROKER", "CALLBOARD_URL", "CALLBOARD_TOKEN"})
"""Variables with our prefix that are no settings: commands' own."""


class SettingsError(CallboardError):
    """A setting cannot be used. Says which, where it was set, and what was expected."""


class Setting(NamedTuple):
    """One value of the tree, and where it comes from."""

    name: str
    value: Any
    source: str
    secret: bool


class Loaded(NamedTuple):
    """The settings, and where each that is no default was set."""

    settings: Settings
    sources: dict[str, str]

    def rows(self) -> Iterator[Setting]:
        """Every setting, with its source."""
        yield from _rows(self.settings, "", self.sources)


def load(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Reads the settings.

    Args:
        file: a TOML file; by default `callboard.toml` in the working folder, if there is one.
        environment: the process's environment variables.

    Raises:
        SettingsError: a key is unknown, a value has the wrong type, or a file cannot be read.
    """
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = file or Path(DEFAULT_FILE)
    if file is not None or path.exists():
        _merge(tree, _read_toml(path), "", str(path), sources)
        for name in sources:
            _check_name(name, str(path))
    for name, value in sorted((environment or {}).items()):
        if name.startswith(PREFIX) and name not in _NOT_SETTINGS:
            _set(tree, name, value, sources)
    return Loaded(_convert(tree, sources), sources)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error


def _merge(tree: dict[str, Any], given: Mapping[str, Any], prefix: str, source: str, sources: dict[str, str]) -> None:
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            section: dict[str, Any] = tree.setdefault(key, {})
            _merge(section, cast(dict[str, Any], value), f"{name}.", source, sources)
        else:
            tree[key] = value
            sources[name] = source


def _set(tree: dict[str, Any], variable: str, value: str, sources: dict[str, str]) -> None:
    words = variable.removeprefix(PREFIX).lower()
    if words.endswith("_file") and not _known(words.replace("__", ".")):
        words = words.removesuffix("_file")
        try:
            value = Path(value).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}={value}: the file cannot be read: {error}") from error
    keys = words.split("__")
    _check_name(".".join(keys), variable)
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    sources[".".join(keys)] = variable


def _fields() -> dict[str, type | None]:
    """The full names of all settings and sections; a section's value is its class."""
    found: dict[str, type | None] = {}

    def walk(cls: type[Struct], prefix: str) -> None:
        for field in msgspec.structs.fields(cls):
            name = f"{prefix}{field.name}"
            if isinstance(field.type, type) and issubclass(field.type, Struct):
                found[name] = field.type
                walk(field.type, f"{name}.")
            else:
                found[name] = None

    walk(Settings, "")
    return found


def _known(name: str) -> bool:
    return name in _fields()


def _check_name(name: str, source: str) -> None:
    fields = _fields()
    if fields.get(name, Struct) is None:
        return
    where = source if source.startswith(PREFIX) else f"{source}: {name}"
    if name in fields:
        inner = [field for field in fields if field.startswith(f"{name}.")]
        raise SettingsError(f"{where}: {name} is a section: set one of {', '.join(inner)}")

    near = difflib.get_close_matches(name, [field for field, section in fields.items() if section is None], 1)
    hint = f": did you mean {near[0]} ({variable(near[0])})?" if near else ": `callboard config show` lists all"
    raise SettingsError(f"{where}: unknown setting{hint}")


def variable(name: str) -> str:
    """The environment variable that sets a setting."""
    return PREFIX + name.replace(".", "__").upper()


def _convert(tree: dict[str, Any], sources: dict[str, str]) -> Settings:
    strings = _strings(tree, sources)
    try:
        return msgspec.convert(strings, Settings)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        base = name.partition("[")[0]
        source = sources.get(base, "")
        where = source if source.startswith(PREFIX) else f"{source or 'settings'}: {name}"
        expected = msgspec.inspect.type_info(_types().get(base))
        choices = expected.values if isinstance(expected, msgspec.inspect.LiteralType) else ()
        hint = f": choose from {', '.join(map(str, choices))}" if choices else ""
        raise SettingsError(f"{where}: {text[0].lower()}{text[1:]}{hint}") from None


def _strings(tree: dict[str, Any], sources: dict[str, str], prefix: str = "") -> dict[str, Any]:
    """The tree with the environment's strings made what their settings ask for, where that is beyond doubt."""
    result: dict[str, Any] = {}
    types = _types()
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            result[key] = _strings(cast(dict[str, Any], value), sources, f"{name}.")
        elif isinstance(value, str) and sources.get(name, "").startswith(PREFIX):
            result[key] = _from_string(value, types[name])
        else:
            result[key] = value
    return result


def _types() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(cls: type[Struct], prefix: str) -> None:
        for field in msgspec.structs.fields(cls):
            found[f"{prefix}{field.name}"] = field.type
            if isinstance(field.type, type) and issubclass(field.type, Struct):
                walk(field.type, f"{prefix}{field.name}.")

    walk(Settings, "")
    return found


def _from_string(text: str, tp: Any) -> Any:
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


def _rows(node: Struct, prefix: str, sources: Mapping[str, str]) -> Iterator[Setting]:
    for name in node.__struct_fields__:
        full, value = f"{prefix}{name}", getattr(node, name)
        if isinstance(value, Struct):
            yield from _rows(value, f"{full}.", sources)
        else:
            yield Setting(full, value, sources.get(full, "default"), name in node.__secret__)
