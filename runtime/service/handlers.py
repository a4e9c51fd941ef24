"""The decorators that turn methods of a service into handlers: `@handles`, `@subscribes`, `@every`."""

import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from runtime.contract.access import Allow
from runtime.contract.errors import DefinitionError, ServiceError
from runtime.contract.messages import MessageSpec, spec_of
from runtime.contract.rest import HttpBinding
from runtime.service.context import Context
from runtime.storage.database import Transaction

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

_MARK = "__callboard__"


class _Handles(msgspec.Struct, frozen=True):
    allow: Allow
    http: str | None
    status: int | None
    once: bool
    idempotent: bool
    key: str | None
    raises: tuple[type[ServiceError], ...]


class _Subscribes(msgspec.Struct, frozen=True):
    allow: Allow | None
    broadcast: bool
    attempts: int


class _Every(msgspec.Struct, frozen=True):
    seconds: float
    each: bool


class Handler(msgspec.Struct, frozen=True, eq=False):
    """A method that handles a message, after all checks.

    Attributes:
        name: its name; that of a method of a part begins with the part's name and a dot.
        part: the part that it is a method of; None if it is one of the service itself.
    """

    name: str
    function: Callable[..., Awaitable[Any]]
    spec: MessageSpec
    takes_tx: bool
    allow: Allow = Allow(every_service=True)
    http: HttpBinding | None = None
    once: bool = False
    idempotent: bool = False
    key: str | None = None
    raises: tuple[type[ServiceError], ...] = ()
    broadcast: bool = False
    attempts: int = 5
    part: type[Any] | None = None


class Timer(msgspec.Struct, frozen=True, eq=False):
    """A method that runs periodically.

    Attributes:
        seconds: the pause between the end of one run and the start of the next.
        part: like that of a handler.
        each: whether every instance runs it.
    """

    name: str
    function: Callable[..., Awaitable[None]]
    seconds: float
    part: type[Any] | None = None
    each: bool = False


def handles(
    function: Any = None,
    /,
    *,
    allow: Allow | None = None,
    http: str | None = None,
    status: int | None = None,
    once: bool = False,
    idempotent: bool = False,
    key: str | None = None,
    raises: tuple[type[ServiceError], ...] = (),
) -> Callable[[F], F]:
    """Make a method the handler of the `Request` that annotates its second parameter.

    The method is `async def name(self, message: Reserve, ctx: Context) -> Reservation`. If it changes the database, it has
    a last parameter `tx: Transaction`; everything it does through `tx` commits when it returns.

    Args:
        allow: who may call: `ANYONE`, `roles(…)`, `services(…)`, `SERVICES`, or several joined with `|`. Required.
        http: the REST route, for example `"POST /rides/{id}/end"`. Fields named in the path come from the path. The others
            come from the query of a GET or DELETE, and otherwise from the JSON body. A GET is idempotent.
        status: the HTTP status of a success; by default 200, or 204 if the reply is `None`.
        once: the effect happens once per idempotency key, and its reply is stored and replayed. Needs `tx`.
        idempotent: running twice does no harm, so the runtime may retry if an instance is lost.
        key: a field of the message. Requests with the same value are handled one at a time, in order.
        raises: the service errors that a caller should expect; the manifest and OpenAPI list them.

    Raises:
        DefinitionError: if an argument is wrong.
    """

    def mark(function: F) -> F:
        if not isinstance(allow, Allow):
            raise DefinitionError(
                f"{function.__qualname__}: say who may call, as @handles(allow=roles('rider')): "
                f"ANYONE, roles(…), services(…) or SERVICES, not {allow!r}"
            )
        if not isinstance(raises, tuple) or not all(
            isinstance(error, type) and issubclass(error, ServiceError) for error in raises
        ):
            raise DefinitionError(
                f"{function.__qualname__}: raises={raises!r}: expected a tuple of ServiceError classes, as raises=(TooRude,)"
            )
        for error in raises:
            if "code" not in vars(error) or (error.contract == "callboard" and error.__module__ != ServiceError.__module__):
                raise DefinitionError(
                    f"{function.__qualname__}: {error.__qualname__} belongs to no contract: decorate it with @contract.message"
                )
        setattr(function, _MARK, _Handles(allow, http, status, once, idempotent, key, raises))
        return function

    if function is not None:
        mark(function)  # used without arguments: raises an error that names the missing one
    return mark


@typing.overload
def subscribes(function: F, /) -> F: ...
@typing.overload
def subscribes(*, allow: Allow | None = None, broadcast: bool = False, attempts: int = 5) -> Callable[[F], F]: ...
def subscribes(function: Any = None, /, *, allow: Allow | None = None, broadcast: bool = False, attempts: int = 5) -> Any:
    """Make a method the handler of the `Event` or `Signal` that annotates its second parameter.

    The handler of an event takes `tx`; this service applies each event exactly once, in the publisher's order. The handler
    of a signal runs on one instance of this service, at most once.

    Args:
        allow: for a signal, the `services(…)` that may publish it besides the one that owns its contract.
        broadcast: for a signal, whether every instance handles it instead of one.
        attempts: for an event, how often the handler may fail before the event becomes a dead letter.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, _Subscribes(allow, broadcast, attempts))
        return function

    return mark if function is None else mark(function)


def every(function: Any = None, /, *, seconds: float = 0, each: bool = False) -> Callable[[F], F]:
    """Run a method `async def name(self, ctx: Context) -> None` periodically: `seconds` after it last returned.

    A run takes a slot in the mailbox, like a message. It has no deadline.

    If instances share a database, one of them runs it at each tick, by a lease in the database. When that instance is lost,
    another one takes over. With `each=True`, and in a service without a database, every instance runs it.

    Raises:
        DefinitionError: if `seconds` is not positive.
    """

    def mark(function: F) -> F:
        if seconds <= 0:
            raise DefinitionError(f"{function.__qualname__}: seconds={seconds}: expected more than 0, as @every(seconds=30)")
        setattr(function, _MARK, _Every(seconds, each))
        return function

    if function is not None:
        mark(function)
    return mark


def handler_of(cls: type, name: str, function: Any) -> Handler | Timer | None:
    """Return the checked handler that a class attribute is, or None if it is not marked as one.

    Raises:
        DefinitionError: if it is marked as a handler and something about it is wrong.
    """
    mark = getattr(function, _MARK, None)
    if mark is None:
        return None
    where = f"{cls.__qualname__}.{name}"
    if not inspect.iscoroutinefunction(function):
        raise DefinitionError(f"{where}: a handler is an `async def`")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    hints = _hints(where, function)
    for parameter in parameters:
        if parameter.name not in hints:
            raise DefinitionError(f"{where}: parameter {parameter.name!r} has no annotation")
    types = [hints[parameter.name] for parameter in parameters]
    if isinstance(mark, _Every):
        if types != [Context]:
            raise DefinitionError(f"{where}: @every expects (self, ctx: Context)")
        return Timer(name, function, mark.seconds, each=mark.each)
    if len(types) not in (2, 3) or types[1] is not Context or types[2:] not in ([], [Transaction]):
        raise DefinitionError(f"{where}: expected (self, message: SomeMessage, ctx: Context), and tx: Transaction if it writes")
    spec = _spec(where, types[0])
    takes_tx = len(types) == 3
    if isinstance(mark, _Subscribes):
        allow = Allow(services=(spec.contract.name, *(() if mark.allow is None else mark.allow.services)))
        handler = Handler(name, function, spec, takes_tx, allow, broadcast=mark.broadcast, attempts=mark.attempts)
        return _subscriber(where, mark, handler)
    return _request_handler(where, name, mark, function, spec, takes_tx, hints.get("return", inspect.Parameter.empty))


def _hints(where: str, function: Any) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise DefinitionError(
            f"{where}: an annotation cannot be resolved ({error}): import it at module level, outside of `if TYPE_CHECKING`"
        ) from error
    if hints.get("return", 0) is type(None):
        hints["return"] = None
    return hints


def _spec(where: str, annotation: Any) -> MessageSpec:
    if not isinstance(annotation, type):
        raise DefinitionError(f"{where}: expected a message class as the second parameter's annotation, got {annotation!r}")
    try:
        return spec_of(annotation)
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error.text}") from error


def _subscriber(where: str, mark: _Subscribes, handler: Handler) -> Handler:
    if handler.spec.kind == "request":
        raise DefinitionError(
            f"{where}: {handler.spec.full_name} is a request: use @handles, @subscribes is for events and signals"
        )
    if handler.spec.kind == "event" and not handler.takes_tx:
        raise DefinitionError(
            f"{where}: {handler.spec.full_name} is an event, and its handler needs `tx: Transaction` as last parameter: "
            "the event's effects commit together with the mark that it was applied"
        )
    if mark.broadcast and handler.spec.kind == "event":
        raise DefinitionError(f"{where}: broadcast=True is for signals; an event is applied once per service")
    if mark.allow is not None and (handler.spec.kind == "event" or mark.allow != Allow(services=mark.allow.services)):
        raise DefinitionError(
            f"{where}: allow= of a subscriber names services(…) that may publish the signal too; an event is its publisher's alone"
        )
    if mark.attempts < 1:
        raise DefinitionError(f"{where}: attempts={mark.attempts}: expected at least 1")
    return handler


def _request_handler(
    where: str, name: str, mark: _Handles, function: Any, spec: MessageSpec, takes_tx: bool, returns: Any
) -> Handler:
    if spec.kind != "request":
        raise DefinitionError(f"{where}: {spec.full_name} is not a request: use @subscribes for an {spec.kind}")
    if returns is inspect.Parameter.empty:
        raise DefinitionError(f"{where}: annotate the reply, as `-> {_shown(spec.reply)}`")
    if returns != spec.reply:
        raise DefinitionError(f"{where}: returns {_shown(returns)}, but {spec.full_name} is answered by {_shown(spec.reply)}")
    if mark.once and not takes_tx:
        raise DefinitionError(f"{where}: once=True needs `tx: Transaction`: the reply is stored in the handler's transaction")
    if mark.once and (spec.stream or spec.reply_stream):
        raise DefinitionError(f"{where}: once=True stores the request and its reply, and a ByteStream cannot be stored")
    if mark.key is not None and mark.key not in spec.cls.__struct_fields__:
        raise DefinitionError(f"{where}: key={mark.key!r} is not a field of {spec.full_name}")
    binding = None
    if mark.http is not None:
        if not mark.allow.outside:
            raise DefinitionError(f"{where}: http={mark.http!r}, but allow= lets only services in: add roles(…) or ANYONE")
        binding = HttpBinding.parse(where, mark.http, mark.status or (204 if spec.reply is None else 200), spec.cls, spec.reply)
    elif mark.status is not None:
        raise DefinitionError(f"{where}: status={mark.status} without http=")
    idempotent = mark.idempotent or (binding is not None and binding.method == "GET")
    return Handler(
        name, function, spec, takes_tx, mark.allow, binding, mark.once, idempotent, mark.key, mark.raises
    )  # fmt: skip


def _shown(tp: Any) -> str:
    return "None" if tp is None else getattr(tp, "__qualname__", str(tp)) if isinstance(tp, type) else str(tp)
