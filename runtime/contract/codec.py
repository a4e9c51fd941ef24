"""The codec of a message: JSON text to and from values, with errors that name the field."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

from runtime.contract.decoding import decode_failure, invalid_json, with_integers
from runtime.contract.errors import Invalid, UsageError, Violation
from runtime.contract.json_values import Check, check_for, pointer_token
from runtime.contract.time_formats import Misfit, TimeFields, time_fields

to_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""Encodes any value as JSON text, unchecked."""

to_canonical_json: Callable[[Any], bytes] = msgspec.json.Encoder(order="deterministic").encode
"""Encodes equal values as equal JSON text, in every process."""


def too_large(what: str, size: int, limit: int) -> str:
    """Return the sentence for a message that the network does not carry. Sizes are in bytes of JSON as it is sent."""
    return f"{what}: expected at most {limit:,} bytes of JSON, got {size:,}: send less of it at a time, or send how it can be requested"


_CANNOT_ENCODE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class Codec:
    """Encodes and decodes the values of one type. What it encodes, it decodes as an equal value.

    Args:
        tp: the type.
        title: what the values are, for error messages.
        int64: whether integers of more than 64 bits are refused.

    Attributes:
        check: finds a value that JSON text cannot carry; None if every value of the type can be carried.
        convert: decodes JSON text, without the check and without translating errors.
        text: encodes a value, without the check and without translating errors.
        times: the fields that are times in a format of their own; None if there are none.
    """

    __slots__ = ("check", "convert", "text", "times", "title")

    def __init__(self, tp: Any, title: str, *, int64: bool = False) -> None:
        self.title: str = title
        self.check: Check | None = check_for(inspect.type_info(tp), int64=int64)
        self.convert: Callable[[bytes | str], Any] = msgspec.json.Decoder(tp).decode
        self.text: Callable[[Any], bytes] = to_json
        self.times: TimeFields | None = time_fields(inspect.type_info(tp))
        if self.times is not None:
            self.convert, self.text = _with_times(self.times, self.convert)

    def __repr__(self) -> str:
        return f"<Codec {self.title}>"

    def encode(self, value: Any) -> bytes:
        """Return a value as JSON text.

        Raises:
            UsageError: if JSON text cannot carry it; the error names the field.
        """
        try:
            text = to_json(value)
        except _CANNOT_ENCODE as error:
            raise UsageError(f"{self.title}: {_shown(_locate(value, str(error)))}") from None
        if self.check is not None and (fault := self.fault(value)) is not None:
            raise UsageError(f"{self.title}: {_shown(fault)}")
        if self.times is None:
            return text
        try:
            return self.times.write(text)
        except Misfit as misfit:
            raise UsageError(f"{self.title}: {_shown(_of_misfit(misfit))}") from None

    def fault(self, value: Any) -> Violation | None:
        """Return the first part of a value that JSON text cannot carry, or None."""
        try:
            return None if self.check is None else self.check(value)
        except RecursionError:
            return Violation("", "nested too deeply")

    def encode_checked(self, value: Any) -> bytes:
        """Return a value as JSON text, after checking that it fits the type: for text whose readers cannot answer.

        Raises:
            UsageError: if it does not fit, or JSON text cannot carry it; the error names the field.
        """
        text = self.encode(value)
        try:
            self.convert(text)
        except msgspec.ValidationError as error:
            raise UsageError(f"{self.title}: {_shown(decode_failure(str(error)))}") from None
        return text

    def decode(self, text: bytes) -> Any:
        """Return the value in JSON text.

        Raises:
            Malformed: if it is not JSON text: broken syntax, bad UTF-8, nesting that is too deep.
            Invalid: if it is JSON text that does not fit the type; the error names the field.
        """
        try:
            value = self.convert(text)
        except Misfit as misfit:
            raise Invalid((_of_misfit(misfit),)) from None
        except msgspec.ValidationError as error:
            value = self._convert_again(text, str(error))
        except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
            raise invalid_json(text, error) from None
        if self.check is None or (found := self.fault(value)) is None:
            return value
        raise Invalid((found,))

    def _convert_again(self, text: bytes, reason: str) -> Any:
        """Return the value in JSON text that did not fit the type if it fits once `1.0` and `1e3` are read as integers."""
        try:
            msgspec.json.decode(text)  # a type error may come before a syntax error in the text
        except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
            raise invalid_json(text, error) from None
        if "got `float`" in reason and (integral := with_integers(text)) is not None:
            try:
                return self.convert(integral)
            except msgspec.ValidationError as error:
                reason = str(error)
        raise Invalid((decode_failure(reason),))


def _with_times(
    times: TimeFields, convert: Callable[[bytes | str], Any]
) -> tuple[Callable[[bytes | str], Any], Callable[[Any], bytes]]:
    return lambda text: convert(times.read(text)), lambda value: times.write(to_json(value))


def _of_misfit(misfit: Misfit) -> Violation:
    return Violation("".join(f"/{pointer_token(name)}" for name in misfit.path), str(misfit))


def _shown(fault: Violation) -> str:
    return f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail


def _locate(value: Any, reason: str) -> Violation:
    """Return where in a value the part is that cannot be encoded."""
    parts: list[tuple[str, Any]] = []
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        parts = [(outside, getattr(value, name)) for outside, name in names]
    elif isinstance(value, tuple | frozenset):
        parts = [(str(at), item) for at, item in enumerate(value)]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for name, part in parts:
        try:
            to_json(part)
        except _CANNOT_ENCODE as error:
            found = _locate(part, str(error))
            return Violation(f"/{pointer_token(name)}{found.pointer}", found.detail)
    return Violation("", reason)
