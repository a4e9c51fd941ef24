"""The official parser of AsyncAPI accepts the document. `make clients` runs this file, which needs Node.js."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from config.asyncapi import system_document
from config.settings import TransportSettings
from tests.project import rental

PARSER = "@asyncapi/parser@3.6.3"
PROGRAM = """\
const { Parser } = require("@asyncapi/parser");
new Parser().validate(require("fs").readFileSync("asyncapi.json", "utf8")).then((found) => console.log(JSON.stringify(found)));
"""


def test_the_official_parser_has_no_objections(tmp_path: Path) -> None:
    document = system_document(rental(transport=TransportSettings(kind="mqtt")))
    (tmp_path / "asyncapi.json").write_bytes(msgspec.json.encode(document))
    (tmp_path / "validate.cjs").write_text(PROGRAM)
    subprocess.run(["npm", "install", "--silent", "--prefix", tmp_path, PARSER], check=True)
    done = subprocess.run(["node", "validate.cjs"], cwd=tmp_path, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert {diagnostic["code"] for diagnostic in found} <= {"asyncapi-latest-version"}, found
