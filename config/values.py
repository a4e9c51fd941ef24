"""Values of settings, from files and environment variables: their names, what they are converted to, and what is refused.

Unknown names and values of the wrong type are refused, with the place where they were set.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast, get_args

import msgspec

from config.foreign_variables import REMEDY, looks_foreign
from runtime import CallboardError, Struct
from runtime.contract.secret import secret_fields
from runtime.files import text_of

PREFIX = "CALLBOARD_"
"""How the names of environment variables with settings begin."""
_MISSING = re.compile(r"Object missing required field `(\w+)`")


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
        found = Field(f"{prefix}{field.encode_name}", field.type, _default(field), field.name in secrets, f"{path}{field.name}")
        yield found
        if found.is_section:
            yield from _walk(found.type, f"{found.name}.", f"{found.attribute}.")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def holds_secret(tp: Any) -> bool:
    """Return whether a setting has structs in it, such as a list of them, with secret fields at any depth."""
    return any(holds_secret(arg) or _is_secret_struct(arg) for arg in get_args(tp))


def _is_secret_struct(tp: Any) -> bool:
    if not (isinstance(tp, type) and issubclass(tp, msgspec.Struct)):
        return False
    return bool(secret_fields(tp)) or any(
        holds_secret(field.type) or _is_secret_struct(field.type) for field in msgspec.structs.fields(tp)
    )


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
            inside = name.removeprefix(setting)
            where = f"{source} {inside}".rstrip() if source.startswith(PREFIX) else f"{source or 'settings'}: {name}"
            field = self.fields.get(setting)
            shows_value = "'" in text and not text.startswith("Expected `str` matching regex ")
            if field is not None and (field.secret or holds_secret(field.type)) and shows_value:
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
    """Return the values of a section. Where only some fields of a section in it are given, the others keep their defaults."""
    found = dict(tree)
    for field in msgspec.structs.fields(section):
        given = tree.get(field.encode_name)
        if isinstance(given, dict) and isinstance(field.type, type) and issubclass(field.type, Struct):
            default = _default(field)
            before: dict[str, Any] = msgspec.to_builtins(default, enc_hook=str) if isinstance(default, Struct) else {}
            found[field.encode_name] = _merged(before, _with_defaults(cast(dict[str, Any], given), field.type))
    return found


def _merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    found = before | after
    for key in before.keys() & after.keys():
        if isinstance(before[key], dict) and isinstance(after[key], dict):
            found[key] = _merged(before[key], after[key])
    return found


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
