"""The reference of all settings, as docs/operations.md has it, drawn from the settings themselves.

`python -m config.reference` writes it into the file; a test sees to it that it was done.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from config.load import variable
from config.settings import Settings
from runtime import Struct

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def reference() -> str:
    """A table for each section: the variable, what it takes, its default, and what it is for."""
    lines: list[str] = []
    for prefix, cls in _sections(Settings, ""):
        title = prefix.rstrip(".") or "at the top"
        lines += [
            "",
            f"### {title}",
            "",
            _first(cls.__doc__),
            "",
            "| variable | takes | by default | |",
            "| --- | --- | --- | --- |",
        ]
        said = _said(cls)
        for field in msgspec.structs.fields(cls):
            if _is_section(field.type):
                continue
            name = variable(f"{prefix}{field.name}")
            what = said.get(field.name, "")
            if field.name in cls.__secret__:
                what = f"Secret: set `{name}_FILE`. {what}".strip()
            lines.append(f"| `{name}` | {_type(field.type)} | {_default(field)} | {what} |")
    return "\n".join(lines).strip() + "\n"


def _sections(cls: type[Struct], prefix: str) -> Iterator[tuple[str, type[Struct]]]:
    if any(not _is_section(field.type) for field in msgspec.structs.fields(cls)):
        yield prefix, cls
    for field in msgspec.structs.fields(cls):
        if _is_section(field.type):
            yield from _sections(field.type, f"{prefix}{field.name}.")


def _is_section(tp: Any) -> bool:
    return isinstance(tp, type) and issubclass(tp, Struct)


def _said(cls: type[Struct]) -> dict[str, str]:
    """What stands below each field in the class's source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[before.target.id] = " ".join(text.split())
                case _:
                    pass
    return found


def _first(doc: str | None) -> str:
    return " ".join((doc or "").strip().split("\n\n")[0].split())


def _type(tp: Any) -> str:
    if get_origin(tp) is tuple:
        return "a list, by commas" if not _is_section(get_args(tp)[0]) else "a list, as JSON"
    info = msgspec.inspect.type_info(tp)
    match info:
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case msgspec.inspect.UnionType(types=types):
            return _named(next(one for one in types if not isinstance(one, msgspec.inspect.NoneType)))
        case _:
            return _named(info)


def _named(info: msgspec.inspect.Type) -> str:
    match info:
        case msgspec.inspect.BoolType():
            return "`true` or `false`"
        case msgspec.inspect.IntType():
            return f"an integer{_range(info)}"
        case msgspec.inspect.FloatType():
            return f"a number{_range(info)}"
        case _:
            return "text"


def _range(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    parts = ((" above", info.gt), (" from", info.ge), (" below", info.lt), (" to", info.le))
    return "".join(f"{word} {bound:.12g}" for word, bound in parts if bound is not None)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is msgspec.NODEFAULT:
        return ""
    if field.default is None or field.default in ("", ()):
        return ""
    text = msgspec.json.encode(field.default).decode() if not isinstance(field.default, str) else field.default
    return f"`{text}`"


def filled(text: str) -> str:
    """A document with the reference in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def main() -> None:
    """Writes the reference into the document that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
