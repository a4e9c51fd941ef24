"""Generate the settings reference in docs/operations.md from the settings classes.

`python -m config.reference FILE` writes the reference into the file. A test fails if docs/operations.md is out of date.
"""

import ast
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from config import compose
from config.load import FIELDS, load
from config.packages import ROOT
from config.settings import ServiceSettings, Settings
from config.values import Field, fields_of, variable_name
from runtime import Struct

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def reference() -> str:
    """Return the reference: for each section, a table with the variable, type, default, and meaning of each setting."""
    sections: dict[str, tuple[type[Struct], list[Field]]] = {"": (Settings, [])}
    fields = [*FIELDS.values()]
    for name, service in compose.catalogue(load(ROOT / "callboard.toml").settings).items():
        if service.Settings is not None:
            fields += [
                _section(f"services.{name}.settings", service.Settings),
                *fields_of(service.Settings, f"services.{name}.settings.").values(),
            ]
    entry = (field for field in fields_of(ServiceSettings, "services.NAME.").values() if field.attribute != "settings")
    fields += [_section("services.NAME", ServiceSettings), *entry]
    for field in fields:
        if field.is_section:
            sections[field.name] = field.type, []
        else:
            sections[field.name.rpartition(".")[0]][1].append(field)
    lines: list[str] = []
    for title, (cls, fields) in sections.items():
        if fields:
            lines += _table(title or "Top level", cls, fields)
    return "\n".join(lines).strip() + "\n"


def _section(name: str, cls: type[Struct]) -> Field:
    return Field(name, cls, None, secret=False, attribute="")


def _table(title: str, cls: type[Struct], fields: list[Field]) -> list[str]:
    descriptions = _descriptions(cls)
    lines = [
        "",
        f"### {title}",
        "",
        _first_paragraph(cls.__doc__),
        "",
        "| variable | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for field in fields:
        variable = variable_name(field.name)
        description = descriptions.get(field.name.rpartition(".")[2], "")
        if field.secret:
            description = f"Secret: set `{variable}_FILE`. {description}".strip()
        lines.append(f"| `{variable}` | {_type(field.type)} | {_default(field.default)} | {description} |")
    return lines


def _descriptions(cls: type[Struct]) -> dict[str, str]:
    """Return the docstrings that follow the fields in the source of a class, by the name of the field."""
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


def _first_paragraph(doc: str | None) -> str:
    return " ".join((doc or "").strip().split("\n\n")[0].split())


def _type(tp: Any) -> str:
    if get_origin(tp) is tuple:
        (item, *_) = get_args(tp)
        return "a JSON array" if isinstance(item, type) and issubclass(item, Struct) else "a comma-separated list"
    info = msgspec.inspect.type_info(tp)
    match info:
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case msgspec.inspect.UnionType(types=types):
            return _type_name(next(one for one in types if not isinstance(one, msgspec.inspect.NoneType)))
        case _:
            return _type_name(info)


def _type_name(info: msgspec.inspect.Type) -> str:
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


def _default(value: Any) -> str:
    if value is msgspec.NODEFAULT or value is None or value in ("", ()):
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return f"`{text}`"


def filled(text: str) -> str:
    """Return the text of a document with the reference between its two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def main() -> None:
    """Update the reference in the file named on the command line."""
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
