"""The texts that users give themselves: no control character, and none that rearranges the text around it."""

import sys
import unicodedata

import msgspec
import pytest

from services.auth.messages import Register

_REARRANGING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "B"}
"""The bidirectional classes of embeddings, overrides, isolates, and paragraph separators (UAX #9)."""
REFUSED = [
    char
    for char in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(char) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(char) in _REARRANGING
] + ["\u061c", "\u200e", "\u200f", "\ufeff", "\ufdd0", "\ufffe", "\uffff"]


def _registers(email: str, name: str) -> bool:
    body = msgspec.json.encode({"email": email, "password": "long enough", "name": name})
    try:
        msgspec.json.decode(body, type=Register)
    except msgspec.ValidationError:
        return False
    return True


def test_control_characters_are_refused_in_every_text_of_a_user() -> None:
    assert len(REFUSED) > 80
    assert not [hex(ord(char)) for char in REFUSED if _registers("a@example.com", f"Ada{char}Lovelace")]
    for pattern in ("a{}b@example.com", "a@exa{}mple.com", "a@example.c{}m"):
        assert not [hex(ord(char)) for char in REFUSED if _registers(pattern.format(char), "Ada")]


@pytest.mark.parametrize("name", ["Ada", "Ada Lovelace", "محمد", "אדה", "नेहा\u200d", "Zoë O’Brien-Smith", "👩\u200d🚀"])
def test_names_of_every_script_are_accepted(name: str) -> None:
    assert _registers("jürgen@exämple.com", name)
