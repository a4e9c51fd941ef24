"""Values that MQTT and HTTP headers share, and how any text becomes one. `docs/wire.md` specifies them.

A broker ends the connection of a client that sends a header with a control character, and HTTP has similar rules. A header
therefore consists of printable ASCII characters only. Every text goes through `encode_text` or `encode_json`, so that it
arrives equal and can never be an illegal header.
"""

import re
from collections.abc import Sequence
from string import ascii_letters, digits
from urllib.parse import quote, unquote

import msgspec

PROBLEM = "application/problem+json"
"""The media type of an error (RFC 9457)."""
MAX_BUDGET = 3600.0
"""The largest budget of a request, in seconds, whatever its caller asks for."""
_DIGITS = 12
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}(/64)?", re.ASCII)
_UNCHANGED = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""The characters that are not encoded, besides letters and digits."""
_PLAIN = (ascii_letters + digits + _UNCHANGED).encode()
_PRINTABLE = re.compile(r"[ -~]*")
_ESCAPED_IN_JSON = re.compile(r"[^ -~]")


def encode_text(text: str) -> str:
    """Return a text as a header. Everything except `_UNCHANGED` is percent-encoded (RFC 3986), in UTF-8.

    Raises:
        ValueError: if the text has a surrogate, which has no encoding.
    """
    return text if text.isascii() and not text.encode().translate(None, _PLAIN) else quote(text, safe=_UNCHANGED)


def encode_list(text: str) -> str:
    """Return a list field of the web, whose own syntax has percent-encoding, as a header: as it is, unless it is illegal there.

    Raises:
        ValueError: if the text has a surrogate, which has no encoding.
    """
    return text if _PRINTABLE.fullmatch(text) else _ESCAPED_IN_JSON.sub(lambda found: quote(found[0]), text)


def decode_text(header: str) -> str:
    """Return the text in a header. Characters that need not have been encoded are accepted as they are.

    Raises:
        ValueError: if what is percent-encoded is not UTF-8.
    """
    return unquote(header, errors="strict") if "%" in header else header


def encode_json(value: Sequence[str] | Sequence[tuple[str, str]]) -> str:
    """Return texts as a JSON header: characters that are not printable ASCII become JSON's `\\u` escapes.

    Raises:
        ValueError: if a text has a surrogate, which has no encoding.
    """
    return _ESCAPED_IN_JSON.sub(_json_escape, msgspec.json.encode(value).decode())


def _json_escape(character: "re.Match[str]") -> str:
    units = character[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def parse_number(text: str) -> int:
    """Return the number in a header.

    Raises:
        ValueError: if the text is not a decimal number of at most twelve ASCII digits.
    """
    if not text.isdecimal() or not text.isascii() or len(text) > _DIGITS:
        raise ValueError(f"{text!r:.40}: expected a number of at most {_DIGITS} digits")
    return int(text)


def parse_address(text: str | None) -> str | None:
    """Return the address of a client. None if the header is missing.

    Raises:
        ValueError: if the text is not an IP address, or the /64 network of one.
    """
    if text is not None and not _ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r:.60}: expected an IP address, or the /64 network of one")
    return text


def parse_budget(text: str | None) -> float | None:
    """Return a budget, which travels in milliseconds, in seconds: at most an hour. None if the header is missing.

    Raises:
        ValueError: if the text is not a number.
    """
    return None if text is None else min(parse_number(text) / 1000, MAX_BUDGET)


def format_budget(seconds: float) -> str:
    """Return a budget in milliseconds: at least none, at most an hour."""
    return str(round(1000 * (seconds if 0.0 <= seconds <= MAX_BUDGET else min(max(0.0, seconds), MAX_BUDGET))))
