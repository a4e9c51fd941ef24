"""Messages and contracts: what services say to each other.

A message is a deeply immutable struct. A `Request[Reply]` gets one reply, an `Event` is a durable fact, and a `Signal` a
transient one. A `Contract` is the named set of messages and errors that a service publishes.
"""

import re
from collections.abc import Callable, Iterator
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import msgspec
from msgspec import inspect

from runtime.contract.byte_stream import ByteStream, contains, stream_field
from runtime.contract.codec import Codec
from runtime.contract.errors import DefinitionError, ServiceError, error_fields, take_times
from runtime.contract.json_values import struct_class
from runtime.contract.multiples import take_over
from runtime.contract.secret import secret_fields

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
M = TypeVar("M", bound="type[Request[Any] | Event | Signal | ServiceError]")

_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")

Kind = Literal["request", "event", "signal"]

_INSTEAD = "(tuple instead of list, frozenset instead of set, a Struct instead of dict or Any)"


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Struct(msgspec.Struct, frozen=True):
    """An immutable record: the base class of messages and of the values in them. Two with equal fields are equal.

    Fields of the type `Secret[…]`, and those named in `__secret__`, appear as `***` in its `repr`, and therefore in logs.
    """

    __secret__: ClassVar[frozenset[str]] = frozenset()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        secrets = secret_fields(type(self))
        return [(name, "***" if name in secrets else getattr(self, name)) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class MessageSpec(msgspec.Struct, frozen=True, eq=False):
    """A message of a contract.

    Attributes:
        kind: `request`, `event`, or `signal`.
        cls: the class of the message.
        codec: encodes and decodes the message.
        reply: the type of the reply of a request.
        reply_codec: encodes and decodes the reply; of other messages, it only takes None.
        key: the name of the field that is the key of a signal.
        live: for a signal that clients follow live, the full name of the request that lists the news after a number.
        stream: the field of a request that is a stream of bytes.
        reply_stream: that of its reply.
    """

    contract: "Contract"
    name: str
    kind: Kind
    cls: type[Any]
    codec: Codec
    reply_codec: Codec
    reply: Any = None
    key: str | None = None
    live: str | None = None
    stream: str | None = None
    reply_stream: str | None = None

    @property
    def full_name(self) -> str:
        """The name of the contract and of the class, for example `wallet.Hold`."""
        return f"{self.contract.name}.{self.name}"


class _Message(Struct):
    """The base class of messages. `__message__` is what its contract knows about it."""

    __message__: ClassVar[MessageSpec | None] = None


class Request(_Message, Generic[R_co]):
    """A message that gets one reply of the type in brackets, or an error."""


class Event(_Message):
    """A durable fact. Only `tx.publish` accepts it: it is committed with the state that it describes, or not at all."""


class Signal(_Message):
    """A transient fact, for example telemetry. Only `ctx.publish` accepts it: each subscriber receives it at most once."""


class Contract:
    """The named set of messages and errors that a service publishes.

    Args:
        name: the name of the service: lower-case letters, digits, `_`, and `-`. Topics, paths, and logs contain it.
        extends: a contract of the same name whose messages and errors belong to this one, too.

    Raises:
        DefinitionError: if the name is not valid.
    """

    name: str

    def __init__(self, name: str, *, extends: "Contract | None" = None) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"contract name {name!r}: expected lower-case letters, digits, '_' and '-'")
        if name == "callboard":
            raise DefinitionError("contract name 'callboard': the errors of the runtime have this name: choose another one")
        if extends is not None and extends.name != name:
            raise DefinitionError(f"contract {name!r} cannot extend {extends.name!r}: the names must be the same")
        self.name = name
        self.messages: dict[str, MessageSpec] = {} if extends is None else dict(extends.messages)
        self.errors: dict[str, type[ServiceError]] = {} if extends is None else dict(extends.errors)

    def __repr__(self) -> str:
        return f"<Contract {self.name!r}: {len(self.messages)} messages, {len(self.errors)} errors>"

    @overload
    def message(self, cls: M, /) -> M: ...
    @overload
    def message(self, /, *, key: str, live: type[Request[Any]] | None = None) -> Callable[[M], M]: ...
    def message(self, cls: Any = None, /, *, key: str | None = None, live: type[Request[Any]] | None = None) -> Any:
        """Add a `Request`, `Event`, `Signal`, or `ServiceError` class to the contract, as a decorator.

        Args:
            key: for a signal, the name of the string field whose value subscribers can select.
            live: for a signal whose key is a user's id and that announces news for clients: the request that lists the news.
                It takes `after: int | None`. Its reply has `items`, each with a `number` and a `kind` (a `Literal`), in
                order, and `last`, the highest number.

        Raises:
            DefinitionError: if the class is none of the four, its name or code is taken, or a field is mutable.
        """
        if cls is None:

            def decorate(decorated: Any) -> Any:
                return self._add(decorated, key, live)

            return decorate
        return self._add(cls, None, None)

    def _add(self, cls: type[Any], key: str | None, live: type[Any] | None) -> type[Any]:
        if issubclass(cls, ServiceError):
            self._add_error(cls)
            return cls
        kind = _kind_of(cls)
        where = f"{self.name}.{cls.__name__}"
        if kind is None:
            raise DefinitionError(f"{where} is not a message: derive it from Request[Reply], Event, Signal or ServiceError")
        if cls.__name__ in self.messages:
            raise DefinitionError(f"{where} is defined twice: give one of them another name")
        take_over(cls)
        for path, found in mutable_parts(cls):
            raise DefinitionError(f"{where}.{path} holds {found}: messages are deeply immutable {_INSTEAD}")
        reply = take_over(_reply_type(cls)) if kind == "request" else None
        for path, found in mutable_parts(reply):
            at = f" at {path}" if path else ""
            raise DefinitionError(f"the reply of {where} holds {found}{at}: replies are deeply immutable {_INSTEAD}")
        self._check_options(cls, kind, key, live)
        try:
            codecs = Codec(cls, where), Codec(reply, f"the reply of {where}")
            streams = stream_field(cls), stream_field(reply)
        except ValueError as error:
            raise DefinitionError(f"{where}: {error}") from None
        if kind != "request" and streams[0] is not None:
            raise DefinitionError(
                f"{where}.{streams[0]} is a ByteStream, which nobody could read later: only requests and replies have one"
            )
        spec = MessageSpec(
            self,
            cls.__name__,
            kind,
            cls,
            *codecs,
            reply,
            key,
            None if live is None else f"{self.name}.{live.__name__}",
            *streams,
        )
        self.messages[spec.name] = spec
        cls.__message__ = spec
        return cls

    def _check_options(self, cls: type[Any], kind: Kind, key: str | None, live: type[Any] | None) -> None:
        """Check the arguments of `message`. Raises DefinitionError."""
        if key is not None and (kind != "signal" or not isinstance(_types_of(cls).get(key), inspect.StrType)):
            raise DefinitionError(f"{self.name}.{cls.__name__}: key={key!r} names no string field of a signal")
        if live is not None and (key is None or not self._lists(live)):
            raise DefinitionError(
                f"{self.name}.{cls.__name__}: live={getattr(live, '__name__', live)}: expected key=, the field with the user's id, and a request of "
                f"{self.name} with `after: int | None`, whose reply has `items` (each with `number: int` and `kind: Literal[…]` of plain words) and `last: int`"
            )
        if live is not None and (other := next((spec.name for spec in self.messages.values() if spec.live), None)):
            raise DefinitionError(f"{self.name}.{cls.__name__}: {other} is live already: a contract has one live signal")

    def _lists(self, request: type[Any]) -> bool:
        """Return whether a request has the form that `live=` needs."""
        spec = self.messages.get(request.__name__)
        if spec is None or spec.cls is not request or spec.kind != "request":
            return False
        asked, reply = _types_of(request, outside=True), _types_of(spec.reply, outside=True)
        items = reply.get("items")
        if not isinstance(items, inspect.VarTupleType) or not isinstance(items.item_type, inspect.StructType):
            return False
        item = {field.encode_name: field.type for field in items.item_type.fields}
        return (
            isinstance(asked.get("after"), inspect.UnionType)
            and isinstance(reply.get("last"), inspect.IntType)
            and isinstance(item.get("number"), inspect.IntType)
            and isinstance(kind := item.get("kind"), inspect.LiteralType)
            and all(re.fullmatch(r"[A-Za-z0-9._-]+", str(value)) for value in kind.values)
        )

    def _add_error(self, cls: type[ServiceError]) -> None:
        if not isinstance(getattr(cls, "code", None), str) or not isinstance(getattr(cls, "status", None), int):
            raise DefinitionError(f"{self.name}.{cls.__name__}: an error needs `code, status = 'some-code', 409`")
        if not _CODE.fullmatch(cls.code):
            raise DefinitionError(
                f"{self.name}.{cls.__name__}: code={cls.code!r}: expected letters, digits, '.', '_' and '-'", cls
            )
        if vars(cls).get("contract", self.name) != self.name:
            raise DefinitionError(
                f"{self.name}.{cls.__name__} belongs to the contract {cls.contract} already: derive another class", cls
            )
        if cls.__init__ is not ServiceError.__init__:
            raise DefinitionError(
                f"{self.name}.{cls.__name__} has its own __init__, but an error is made from its fields wherever it arrives: "
                "annotate the fields, with defaults",
                cls,
            )
        if not 400 <= cls.status <= 599:
            raise DefinitionError(f"{self.name}.{cls.__name__}: status={cls.status}: expected an error's, from 400 to 599")
        if cls.code in self.errors:
            raise DefinitionError(f"{self.name}: error code {cls.code!r} is defined twice")
        take_over(error_fields(cls))
        for path, found in mutable_parts(error_fields(cls)):
            raise DefinitionError(f"{self.name}.{cls.__name__}.{path} holds {found}: errors carry immutable fields")
        if contains(error_fields(cls), ByteStream):
            raise DefinitionError(f"{self.name}.{cls.__name__} contains a ByteStream: only requests and replies have one")
        try:
            take_times(cls)
        except ValueError as error:
            raise DefinitionError(f"{self.name}.{cls.__name__}: {error}") from None
        self.errors[cls.code] = cls
        cls.contract = self.name


def _types_of(cls: type[Any], *, outside: bool = False) -> dict[str, inspect.Type]:
    """Return the types of a struct's fields by name, or by the name that they have outside; empty if it is not a struct."""
    info = inspect.type_info(cls)
    if not isinstance(info, inspect.StructType):
        return {}
    return {field.encode_name if outside else field.name: field.type for field in info.fields}


def spec_of(cls: type[Any]) -> MessageSpec:
    """Return what a contract knows about a message class.

    Raises:
        DefinitionError: if the class belongs to no contract.
    """
    spec = getattr(cls, "__message__", None)
    if not issubclass(cls, msgspec.Struct):
        raise DefinitionError(f"{cls.__qualname__} is not a message: expected a class that is decorated with @contract.message")
    if not isinstance(spec, MessageSpec) or spec.cls is not cls:
        raise DefinitionError(f"{cls.__module__}.{cls.__qualname__} belongs to no contract: decorate it with @contract.message")
    return spec


def _kind_of(cls: type[Any]) -> Kind | None:
    if issubclass(cls, Request):
        return "request"
    if issubclass(cls, Event):
        return "event"
    return "signal" if issubclass(cls, Signal) else None


def _reply_type(cls: type[Any]) -> Any:
    for ancestor in cls.__mro__:
        for base in getattr(ancestor, "__orig_bases__", ()):
            if get_origin(base) is Request:
                (reply,) = get_args(base)
                if isinstance(reply, TypeVar):
                    raise DefinitionError(f"{cls.__qualname__}: name the reply, as in Request[None] or Request[Ride]")
                return None if reply is type(None) else reply
    raise DefinitionError(f"{cls.__qualname__}: name the reply, as in Request[None] or Request[Ride]")


_IMMUTABLE = (
    inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.StrType, inspect.BytesType,
    inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType, inspect.UUIDType,
    inspect.DecimalType, inspect.EnumType, inspect.LiteralType,
)  # fmt: skip


def mutable_parts(tp: Any) -> Iterator[tuple[str, str]]:
    """Yield the parts of a type that are not deeply immutable, as pairs of a dotted path and what is found there."""
    try:
        info = inspect.type_info(tp)
    except NameError as error:
        raise DefinitionError(
            f"{getattr(tp, '__qualname__', tp)}: a field's type cannot be resolved ({error}): define messages at module "
            "level, in order, and import their types outside of `if TYPE_CHECKING`"
        ) from error
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"{_faulty_field(tp)} has a type that cannot be used: {error}{_remedy(str(error))}") from error
    yield from _mutable("", info, set())


def _faulty_field(tp: Any) -> str:
    """Return the name of the first field of a type that msgspec refuses."""
    name = getattr(tp, "__qualname__", str(tp))
    if isinstance(tp, type) and issubclass(tp, msgspec.Struct):
        for field, annotation in get_type_hints(tp, include_extras=True).items():
            try:
                if field in tp.__struct_fields__:
                    inspect.type_info(annotation)
            except (TypeError, ValueError):
                return f"{name}.{field}"
    return name


def _remedy(reason: str) -> str:
    if "Decimal" in reason and "numeric type" in reason:
        return "; msgspec has no bounds for Decimal: check them in `__post_init__`, which may raise ValueError"
    return ""


def _mutable(path: str, info: inspect.Type, seen: set[Any]) -> Iterator[tuple[str, str]]:
    if isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, _IMMUTABLE):
        return
    if isinstance(info, inspect.UnionType):
        for part in info.types:
            yield from _mutable(path, part, seen)
    elif isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        yield from _mutable(f"{path}[]", info.item_type, seen)
    elif isinstance(info, inspect.TupleType):
        for part in info.item_types:
            yield from _mutable(f"{path}[]", part, seen)
    elif isinstance(info, inspect.StructType):
        if info.cls in seen:
            return
        seen.add(info.cls)
        cls = struct_class(info)
        if not cls.__struct_config__.frozen:
            yield path, f"the mutable struct {cls.__name__} (derive it from runtime.Struct)"
        for field in info.fields:
            yield from _mutable(f"{path}.{field.name}".lstrip("."), field.type, seen)
    else:
        yield path, type(info).__name__.removesuffix("Type").lower() or "any value"
