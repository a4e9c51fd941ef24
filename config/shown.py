"""The settings as people see them: each with its value and where it was set. Secrets are masked."""

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from config import compose
from config.load import Loaded
from runtime.contract.messages import secret_fields


def shown(loaded: Loaded) -> list[dict[str, str]]:
    """Return every setting with its value as text and its source."""
    return [
        {
            "setting": setting.name,
            "value": "***" if setting.secret and setting.value is not None else _format(setting.value),
            "source": setting.source,
        }
        for setting in compose.rows(loaded)
    ]


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
