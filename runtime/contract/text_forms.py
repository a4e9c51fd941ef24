"""The texts that values have in JSON: how clients write a point in time, a duration, an exact number, and bytes.

The published schemas contain these forms, and the decoder of REST requests accepts no others. Between services, msgspec accepts
more, such as a space in place of the `T`.
"""

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
_OFFSET = r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_SECONDS = r"[0-9]{1,9}(?:\.[0-9]+)?S"
_OF_DAY = f"T(?:[0-9]{{1,9}}H(?:[0-9]{{1,9}}M)?(?:{_SECONDS})?|[0-9]{{1,9}}M(?:{_SECONDS})?|{_SECONDS})"
_CENTURY = "(?:[02468][48]|[2468]0|[13579][26])"
"""Two digits of a number that is divisible by four, other than 00."""
_DATE = (
    "(?:(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-"
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_CENTURY}|{_CENTURY}00)-02-29)"
)
"""A date. Only what has no `format` needs it, because validators know that of a date."""


class TextForm(msgspec.Struct, frozen=True):
    """The text of the values of a type.

    Attributes:
        pattern: a regular expression in the subset that JSON Schema recommends (section 6.4 of the 2020-12 core).
        format: the `format` that says the same to validators and code generators, if there is one.
        example: a text of the form, for error messages.
    """

    pattern: str
    format: str | None
    example: str

    @property
    def schema(self) -> dict[str, Any]:
        """The keywords of the JSON Schema: the format alone if it says everything."""
        if self.format in _COMPLETE:
            return {"type": "string", "format": self.format}
        return {"type": "string", "pattern": self.pattern} | ({} if self.format is None else {"format": self.format})


_COMPLETE = ("date-time", "date", "time")
"""The formats of JSON Schema that validators and generators know as well as the pattern. Not all of them know `uuid`."""

DATE_TIME = TextForm(f"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt]{_TIME}{_OFFSET}$", "date-time", "2026-01-31T12:00:00Z")
LOCAL_DATE_TIME = TextForm(f"^{_DATE}[Tt]{_TIME}$", "date-time-local", "2026-01-31T12:00:00")
TIME = TextForm(f"^{_TIME}{_OFFSET}$", "time", "12:00:00Z")
LOCAL_TIME = TextForm(f"^{_TIME}$", "time-local", "12:00:00")
ANY_TIME = TextForm(f"^{_TIME}{_OFFSET}?$", None, "12:00:00")
DATE = TextForm("^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "date", "2026-01-31")
DURATION = TextForm(
    f"^-?P(?:[0-9]{{1,9}}D(?:T[0-9]{{1,5}}(?:\\.[0-9]+)?S)?|(?:[0-9]{{1,8}}D)?{_OF_DAY})$",
    None,  # not `duration`, which has weeks, months, and years, but neither a sign nor fractions (RFC 3339, appendix A)
    "P1DT12H30M0.5S",
)
DECIMAL = TextForm(r"^-?[0-9]+(?:\.[0-9]+)?(?:[Ee][+-]?[0-9]{1,18})?$", "decimal", "12.50")
UUID_TEXT = TextForm(
    "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$",
    "uuid",
    "01938b0e-9f6c-7a3d-8a43-6a3f3f1c2b4d",
)

_FORMS: dict[type, TextForm] = {
    datetime: DATE_TIME, date: DATE, time: ANY_TIME, timedelta: DURATION, Decimal: DECIMAL, UUID: UUID_TEXT,
}  # fmt: skip
_ALL = (DATE_TIME, LOCAL_DATE_TIME, ANY_TIME, DATE, DURATION, DECIMAL, UUID_TEXT)
_MATCHES = {form: re.compile(form.pattern.removesuffix("$")).fullmatch for form in _ALL}


def text_fault(value: Any, text: Any) -> str | None:
    """Return what is wrong with the text from which a value was decoded, or None if it has the published form."""
    form = _FORMS.get(value.__class__)
    if form is DATE_TIME and value.tzinfo is None:
        form = LOCAL_DATE_TIME
    if form is None:
        return None
    if type(text) is str and _MATCHES[form](text):
        return None
    return f"expected a string such as {form.example}, got {str(text)[:40]!r}"


def base64_pattern(least: int, most: int | None) -> str:
    """Return the pattern of the base64 texts of `least` to `most` bytes. `maxLength` cannot say it: one, two, and three bytes have four characters."""
    if least == 0 and most is None:
        return "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    variants: list[str] = []
    for rest, tail in ((0, ""), (1, "[A-Za-z0-9+/]{2}=="), (2, "[A-Za-z0-9+/]{3}=")):
        fewest = max(0, -((rest - least) // 3))
        if most is None or fewest * 3 + rest <= most:
            variants.append(f"(?:[A-Za-z0-9+/]{{4}}){{{fewest},{'' if most is None else (most - rest) // 3}}}{tail}")
    return f"^(?:{'|'.join(variants)})$"
