"""The documentation as a website: its links, and what it may load. `make check-docs` builds it."""

import importlib
import re

import pytest

from docs.hooks import loaded_from_elsewhere, translated
from tests.system.process import ROOT

PACKAGES = ("runtime", "runtime.network", "runtime.storage", "runtime.testing", "config.testing")


@pytest.mark.parametrize(
    ("uri", "markdown", "expected"),
    [
        ("index.md", "[wire](docs/wire.md#headers)", "[wire](wire.md#headers)"),
        ("index.md", "[decisions](docs/decisions/)", "[decisions](decisions/README.md)"),
        (
            "findings.md",
            "[a finding](pip-require-hashes-extra.sh)",
            "[a finding](repository/findings/pip-require-hashes-extra.sh)",
        ),
        ("services.md", "[how](../CONTRIBUTING.md#style)", "[how](contributing.md#style)"),
        ("services.md", "[wallet](../services/wallet/service.py)", "[wallet](repository/services/wallet/service.py)"),
        ("decisions/0003-guards.md", "[link](../wire.md)", "[link](../wire.md)"),
        ("services.md", "[a](https://example.com/x) [b](#access)", "[a](https://example.com/x) [b](#access)"),
        ("services.md", "```\n[x](../README.md)\n```\n", "```\n[x](../README.md)\n```\n"),
        ("services.md", "| `str \\| None` | x \\| y |", "| `str | None` | x \\| y |"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(uri: str, markdown: str, expected: str) -> None:
    assert translated(uri, markdown) == expected


@pytest.mark.parametrize(
    "text",
    [
        '<script async src="https://example.com/a.js"></script>',
        "<img alt=x src=//example.com/a.png>",
        '<link rel="stylesheet" href="https://example.com/a.css">',
        '@import url("https://example.com/a.css");',
        "background: url(https://example.com/a.png)",
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(text: str) -> None:
    assert len(loaded_from_elsewhere(text)) == 1


@pytest.mark.parametrize(
    "text", ['<a href="https://example.com/">', '<script src="assets/a.js">', "url(data:image/png;base64,x)"]
)
def test_links_and_files_of_the_site_are_allowed(text: str) -> None:
    assert loaded_from_elsewhere(text) == []


def test_the_reference_has_every_public_name_once() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    named = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(named) == len(set(named))
    documented = [_object(name) for name in named]
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            assert any(found is getattr(module, name) for found in documented), f"docs/reference/ lacks {package}.{name}"


def _object(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
