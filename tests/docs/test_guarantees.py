"""Every test that docs/guarantees.md names exists."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from runtime.testing import Kit

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "guarantees.md"
REFERENCE = re.compile(r"`(?:(?P<file>[\w/]+\.py)(?:::(?P<name>\w+))?|(?P<bare>test_\w+)|conformance::(?P<case>\w+))`")


def references() -> Iterator[str]:
    """Yield each reference as `file`, `file::test` or `conformance::case`, completed by the rules that the page states."""
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        file = "" if line.startswith("#") else heading
        for match in REFERENCE.finditer(line):
            if match["case"]:
                yield f"conformance::{match['case']}"
                continue
            file = match["file"] or file
            name = match["name"] or match["bare"]
            yield f"{file}::{name}" if name else file
        if line.startswith("#"):
            heading = file


@cache
def functions(file: str) -> set[str]:
    """Return the names of the functions in a file under tests/."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("reference", sorted(set(references())))
def test_the_reference_exists(reference: str) -> None:
    file, _, name = reference.partition("::")
    if file == "conformance":
        assert name in Kit.cases(), f"{name} is not a case of the conformance kit"
        return
    assert (TESTS / file).is_file(), f"tests/{file} is not a file"
    assert not name or name in functions(file), f"tests/{file} defines no test {name}"


def test_the_page_has_references() -> None:
    assert len(set(references())) > 100
