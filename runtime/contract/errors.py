"""Every error that a request can end in, and how errors cross the wire.

An error is a `ServiceError`: a class of a contract, with a code, an HTTP status, and immutable fields. It reaches the caller
as the same class with the same fields, in one process and across a network. Two families describe the fate of the message:

- `NotDelivered`: the handler has not run. A retry is safe.
- `MaybeDelivered`: the handler may have run. A retry is safe only for an idempotent or a `once` request.

Any other `ServiceError` is the callee's own answer. If a handler lets a `NotDelivered` error of a service that it called
through to its own caller, the error gets `maybe_delivered`, because this handler has run.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self, dataclass_transform

import msgspec
from msgspec import inspect

from runtime.contract.error_fields import own_fields, why_taken
from runtime.contract.time_formats import Misfit, TimeFields, time_fields
from runtime.source import calling_place, place_of


class CallboardError(Exception):
    """The base class of errors that Callboard raises and that never cross the wire."""


class DefinitionError(CallboardError):
    """A definition of a service, message, or handler is wrong. Raised when the class is defined or the node starts.

    Args:
        text: the fault and the remedy.
        definition: the function, class, or file that is wrong; by default the code that makes the definition. The error
            names its file and line.
    """

    def __init__(self, text: str = "", definition: object = None) -> None:
        where = place_of(definition) or calling_place()
        self.text: str = text
        super().__init__(text if where is None else f"{where}: {text}")


class StartError(CallboardError):
    """A service cannot start, and a retry would not help: something outside has to be fixed first."""


class UsageError(CallboardError):
    """A handler uses the runtime's API in a wrong way, for example a request in an open transaction."""


class ErrorData(msgspec.Struct, frozen=True):
    """An error on the wire: a problem document (RFC 9457) with extension members. `fields` is a JSON object."""

    contract: str
    code: str
    status: int
    title: str
    retryable: bool = False
    maybe_delivered: bool = False
    fields: msgspec.Raw = msgspec.Raw(b"{}")
    type: str = "about:blank"
    detail: str = ""


@dataclass_transform()
class ServiceError(Exception):
    """An answer that is not a reply. Subclass it in a contract, and annotate its fields like those of a struct.

    The first line of the docstring is the title that people read.

    Attributes:
        contract: the name of the contract.
        code: the code, which is unique within the contract.
        status: the HTTP status.
        retryable: whether the callee has done nothing and the same request may succeed later. A retryable answer is never
            stored as the answer of a `once` request.
        maybe_delivered: whether the handler may have run.
    """

    contract: ClassVar[str] = "callboard"
    code: ClassVar[str]
    status: ClassVar[int]
    retryable: ClassVar[bool] = False
    maybe_delivered: ClassVar[bool] = False
    _shadow: ClassVar[type[msgspec.Struct]]
    _times: ClassVar[TimeFields | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        annotations: dict[str, Any] = {}
        for ancestor in reversed(cls.__mro__[: cls.__mro__.index(ServiceError)]):
            annotations.update(own_fields(ancestor))
        if cls.__module__ != __name__:
            for name, annotation in annotations.items():
                outside = getattr(getattr(cls, name, None), "name", None)  # of `msgspec.field(name=…)`
                taken = [why_taken(one, annotation, _TAKEN) for one in (name, outside) if isinstance(one, str)]
                if (remedy := next(filter(None, taken), None)) is not None:
                    raise DefinitionError(
                        f"{cls.__module__}.{cls.__qualname__}.{name}: an error's field cannot have this name, which every error and "
                        f"its problem document use: {remedy}"
                    )
        fields: list[Any] = []
        for name, annotation in annotations.items():
            default = getattr(cls, name, msgspec.NODEFAULT)
            fields.append((name, annotation) if default is msgspec.NODEFAULT else (name, annotation, default))
        try:
            cls._shadow = msgspec.defstruct(cls.__name__, fields, frozen=True, module=cls.__module__)
        except TypeError as error:
            raise DefinitionError(f"{cls.__module__}.{cls.__qualname__}: {error}: fields with defaults come last") from error

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shadow = self._shadow(*args, **kwargs)
        values = [getattr(shadow, name) for name in shadow.__struct_fields__]
        super().__init__(*values)
        self.__dict__.update(zip(shadow.__struct_fields__, values, strict=True))

    def __str__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shadow.__struct_fields__)
        return f"{self.title()} ({fields})" if fields else self.title()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServiceError) and type(self) is type(other) and self.args == other.args

    def __hash__(self) -> int:
        return hash((type(self), self.args))

    @classmethod
    def title(cls) -> str:
        """Return the title: the first line of the docstring."""
        return (cls.__doc__ or cls.__name__).strip().partition("\n")[0].rstrip(".")

    def data(self) -> ErrorData:
        """Return the error as it crosses the wire."""
        text = msgspec.json.encode(self.shadow())
        return ErrorData(
            contract=self.contract,
            code=self.code,
            status=self.status,
            title=self.title(),
            retryable=self.retryable,
            maybe_delivered=self.maybe_delivered,
            fields=msgspec.Raw(text if self._times is None else self._times.write(text)),
            type=f"urn:callboard:{self.contract}:{self.code}",
            detail=self.explained(),
        )

    def shadow(self) -> msgspec.Struct:
        """Return the fields as the struct that carries them on the wire."""
        return self._shadow(*self.args)

    def may_have_run(self) -> Self:
        """Mark the error as one after which the handler may have run, and return it."""
        self.__dict__["maybe_delivered"] = True
        return self

    def explained(self) -> str:
        """Return what is particular to this occurrence, for people; empty if the title says everything."""
        detail = getattr(self, "detail", "")
        return detail if isinstance(detail, str) else ""


_TAKEN = frozenset(dir(ServiceError))


def take_times(cls: type[ServiceError]) -> None:
    """Find the fields of an error that are times in a format of their own. Raises like `time_fields`."""
    cls._times = time_fields(inspect.type_info(error_fields(cls)))  # pyright: ignore[reportPrivateUsage]  # the class's own module


def error_fields(cls: type[ServiceError]) -> type[msgspec.Struct]:
    """Return the struct that carries the fields of an error class on the wire."""
    return cls._shadow  # pyright: ignore[reportPrivateUsage]  # the class's own module


KnownErrors = Callable[[str, str], type[ServiceError] | None]
"""Returns the error class for the name of a contract and a code, or None if it is not known."""


def rebuild_error(data: ErrorData, known: KnownErrors) -> ServiceError:
    """Return the error that `data` describes: as its class if `known(contract, code)` returns it, else as a `RemoteError`."""
    cls = _BUILT_IN.get(data.code) if data.contract == "callboard" else known(data.contract, data.code)
    if cls is not None:
        try:
            text = data.fields if cls._times is None else cls._times.read(bytes(data.fields))  # pyright: ignore[reportPrivateUsage]  # the class's own module
            shadow = msgspec.json.decode(text, type=error_fields(cls))
        except (msgspec.DecodeError, Misfit):
            pass  # the peer has another version of the class
        else:
            error = cls(*(getattr(shadow, name) for name in shadow.__struct_fields__))
            return error.may_have_run() if data.maybe_delivered else error
    return RemoteError(data)


def is_answer(error: ServiceError) -> bool:
    """Return whether an error is a service's own final answer, which a retry would not change."""
    return not error.retryable and error.contract != "callboard"


class RemoteError(ServiceError):
    """An error of a contract that the caller does not import.

    It has the `contract`, `code`, `status`, and `retryable` of the original error. Its `fields` are a dict.
    """

    code: ClassVar[str] = "remote-error"
    status: ClassVar[int] = 502

    def __init__(self, data: ErrorData) -> None:
        self._data = data
        Exception.__init__(self, data)
        self.fields: dict[str, Any] = msgspec.json.decode(data.fields)
        # instance values shadow those of the class, so that callers read the status of any error in the same way
        self.__dict__.update(
            contract=data.contract,
            code=data.code,
            status=data.status,
            retryable=data.retryable,
            maybe_delivered=data.maybe_delivered,
        )

    def __str__(self) -> str:
        return f"{self._data.title} ({self._data.contract}.{self._data.code}, status {self._data.status})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteError) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str, bytes]:
        return self._data.contract, self._data.code, bytes(self._data.fields)

    def data(self) -> ErrorData:
        return self._data


class NotDelivered(ServiceError):
    """The handler has not run: a retry is safe."""

    code: ClassVar[str] = "not-delivered"
    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


class NoInstance(NotDelivered):
    """The service has no live instance."""

    code: ClassVar[str] = "no-instance"
    service: str


class Overloaded(NotDelivered):
    """The instance's mailbox is full."""

    code: ClassVar[str] = "overloaded"
    service: str


class Draining(NotDelivered):
    """The instance is stopping and takes no new work."""

    code: ClassVar[str] = "draining"
    service: str


class Unreachable(NotDelivered):
    """The message could not be sent to the service's instance."""

    code: ClassVar[str] = "unreachable"
    service: str


class MaybeDelivered(ServiceError):
    """The handler may have run, wholly or in part: a retry is safe only if the request is idempotent."""

    code: ClassVar[str] = "maybe-delivered"
    status: ClassVar[int] = 502
    retryable: ClassVar[bool] = True
    maybe_delivered: ClassVar[bool] = True


class InstanceLost(MaybeDelivered):
    """The instance that had the request went away before it answered."""

    code: ClassVar[str] = "instance-lost"
    service: str


class DeadlineExceeded(MaybeDelivered):
    """No answer came before the deadline."""

    code: ClassVar[str] = "deadline-exceeded"
    status: ClassVar[int] = 504
    service: str


class StreamBroken(MaybeDelivered):
    """A stream of bytes ended before it was complete."""

    code: ClassVar[str] = "stream-broken"
    detail: str = ""


class Violation(msgspec.Struct, frozen=True):
    """One fault in a message: where it is (a JSON Pointer, RFC 6901), and what was expected."""

    pointer: str
    detail: str


class Invalid(ServiceError):
    """Something in the request is wrong."""

    code: ClassVar[str] = "invalid"
    status: ClassVar[int] = 422
    violations: tuple[Violation, ...]

    def explained(self) -> str:
        """Return all violations as one line of text."""
        return "; ".join(f"{violation.pointer or '/'}: {violation.detail}" for violation in self.violations)


class Malformed(ServiceError):
    """The request cannot be read."""

    code: ClassVar[str] = "malformed"
    status: ClassVar[int] = 400
    detail: str


class Unauthenticated(ServiceError):
    """A valid access token is needed."""

    code: ClassVar[str] = "unauthenticated"
    status: ClassVar[int] = 401
    detail: str = "an access token is needed in `Authorization`"


class Forbidden(ServiceError):
    """The caller may not make this request."""

    code: ClassVar[str] = "forbidden"
    status: ClassVar[int] = 403


class UnknownRequest(ServiceError):
    """The service has no such request."""

    code: ClassVar[str] = "unknown-request"
    status: ClassVar[int] = 404
    request: str


class KeyReused(ServiceError):
    """The idempotency key was used before with another body."""

    code: ClassVar[str] = "idempotency-key-reused"
    status: ClassVar[int] = 422


class InProgress(ServiceError):
    """The same request, with the same idempotency key, is still being worked on."""

    code: ClassVar[str] = "in-progress"
    status: ClassVar[int] = 409
    retryable: ClassVar[bool] = True


class CallCycle(ServiceError):
    """A serial service was asked, through others, by its own handler: waiting would never end."""

    code: ClassVar[str] = "call-cycle"
    status: ClassVar[int] = 500
    path: tuple[str, ...]


class DatabaseUnavailable(ServiceError):
    """The service's database refused or failed; nothing of the request was kept."""

    code: ClassVar[str] = "database-unavailable"
    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True
    service: str


class InternalError(ServiceError):
    """The service failed. Its log has the details under the incident's id."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    incident: str


_BUILT_IN: dict[str, type[ServiceError]] = {
    cls.code: cls
    for cls in (
        NotDelivered, NoInstance, Overloaded, Draining, Unreachable, MaybeDelivered, InstanceLost, DeadlineExceeded, Invalid, Malformed,
        Unauthenticated, Forbidden, UnknownRequest, KeyReused, InProgress, CallCycle, DatabaseUnavailable, InternalError,
        StreamBroken,
    )
}  # fmt: skip
