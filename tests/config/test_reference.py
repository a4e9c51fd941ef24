"""The reference of settings in the documentation."""

from pathlib import Path

from config.reference import filled


def test_the_documented_reference_matches_the_settings() -> None:
    document = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    assert filled(document) == document, "docs/operations.md is out of date: run `make docs`"
    assert (
        "| `CALLBOARD_GATEWAY__PORT` | an integer from 0 to 65535 | `8000` | The port to listen on; 0 takes a free one. |"
        in document
    )
