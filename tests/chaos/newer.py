"""A newer version of the services, whose messages have one more field each."""

import ast
import shutil
from pathlib import Path

from config.packages import ROOT

_FIELD = '    added: str = "a field that only the newer version has"'


def write_newer(folder: Path) -> Path:
    """Write the newer version. Return its package `services`."""
    package = folder / "newer" / "services"
    shutil.copytree(ROOT / "services", package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package.glob("*/messages.py"):
        path.write_text(_with_more_fields(path.read_text(encoding="utf-8")), encoding="utf-8")
    return package


def _with_more_fields(text: str) -> str:
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ClassDef) and node.end_lineno is not None and "ServiceError" not in map(ast.unparse, node.bases):
            lines.insert(node.end_lineno, _FIELD)
    return "\n".join(lines) + "\n"
