"""The settings as people see them: each with its value and where it was set. Secrets are masked."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec

from config import compose
from config.load import Loaded, Setting
from config.settings import Settings
from runtime.contract.secret import secret_fields


def shown(loaded: Loaded, running: Settings | None = None) -> list[dict[str, str]]:
    """Return every setting with its value as text and its source.

    Args:
        loaded: the settings, with where each was set.
        running: those that `callboard dev` made of them.
    """
    return _rows(compose.rows(loaded, running), _format)


def shown_values(loaded: Loaded) -> list[dict[str, Any]]:
    """Return every setting with its value, for JSON, and its source."""
    return _rows(compose.rows(loaded), _plain)


def _rows(settings: Iterable[Setting], shape: Callable[[Any], Any]) -> list[dict[str, Any]]:
    return [
        {
            "setting": setting.name,
            "value": "***" if setting.secret and setting.value is not None else shape(setting.value),
            "source": setting.source,
        }
        for setting in settings
    ]


def _plain(value: Any) -> Any:
    """Return the value of a setting as JSON has it. Structs may contain secrets, which are masked."""
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in cast("Iterable[Any]", value)]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, msgspec.Struct):
        secrets = secret_fields(type(value))
        return {name: "***" if name in secrets else _plain(getattr(value, name)) for name in value.__struct_fields__}
    return msgspec.to_builtins(value, enc_hook=str)


def _format(value: Any) -> str:
    """Return the value of a setting as text, as JSON where that is possible. Structs may contain secrets, which are masked."""
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_format(item) for item in cast("Iterable[Any]", value)) + "]"
    if isinstance(value, dict):
        found = cast("dict[Any, Any]", value)
        return "{" + ", ".join(f"{_format(key)}: {_format(item)}" for key, item in found.items()) + "}"
    if isinstance(value, msgspec.Struct):
        secrets = secret_fields(type(value))
        shown = [f"{name}={'***' if name in secrets else _format(getattr(value, name))}" for name in value.__struct_fields__]
        return f"{type(value).__name__}({', '.join(shown)})"
    return msgspec.json.encode(value, enc_hook=str).decode()
