"""Values that MQTT and HTTP headers share: numbers, budgets, and the media type of errors. `docs/wire.md` specifies them."""

import re

PROBLEM = "application/problem+json"
"""The media type of an error (RFC 9457)."""
MAX_BUDGET = 3600.0
"""The largest budget of a request, in seconds, whatever its caller asks for."""
_DIGITS = 12
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}(/64)?", re.ASCII)


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
    return str(round(min(max(0.0, seconds), MAX_BUDGET) * 1000))
