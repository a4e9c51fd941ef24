"""The figures in docs/security.md are those of the code."""

import re

import msgspec

from gateway.responses import SECURITY
from gateway.settings import GatewaySettings
from gateway.tickets import SECONDS
from runtime.identity import MAX_LIFETIME
from services.auth.passwords import HashSettings
from services.auth.service import AuthSettings
from tests.system.process import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_the_limits_are_the_defaults_of_the_gateway() -> None:
    section = PAGE.partition("## The gateway's limits\n")[2].partition("\n## ")[0]
    defaults = {field.name: field.default for field in msgspec.structs.fields(GatewaySettings)}
    rows = re.findall(r"^\| (`.*?`) \| ([\d, ]+) \|", section, re.MULTILINE)
    assert len(rows) == 10
    for names, values in rows:
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True):
            assert defaults[name] == float(value), name


def test_lifetimes_and_costs_are_those_of_the_code() -> None:
    hashing = HashSettings()
    for text in (
        f"({hashing.memory_kib // 1024} MiB, {hashing.iterations} iterations, {hashing.lanes} lanes by default)",
        f"`access_seconds`, {MAX_LIFETIME // 60} minutes at most",
        f"It works once, for {SECONDS} seconds",
    ):
        assert text in PAGE
    assert AuthSettings().access_seconds == 600
    assert AuthSettings().rotate_seconds == 30 * 24 * 3600


def test_the_header_fields_are_those_of_every_response() -> None:
    sentence = re.search(r"^Responses have .*$", PAGE, re.MULTILINE)
    assert sentence is not None
    for name, _ in SECURITY:
        assert name.decode() in sentence[0].lower()
