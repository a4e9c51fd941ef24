"""What a service opens when it starts, such as an HTTP client or a pool, and closes when it has stopped."""

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar, cast, overload

from runtime.contract.errors import DefinitionError, UsageError

T = TypeVar("T")


class Resource(Generic[T]):
    """An attribute of a service that is there while it runs: what its function yields. See `resource`."""

    def __init__(self, function: Callable[[Any], AsyncGenerator[T, None]]) -> None:
        if not inspect.isasyncgenfunction(function):
            raise DefinitionError(
                f"{function.__qualname__}: @resource: expected `async def` with `yield`, which opens before and closes after it"
            )
        self._open = asynccontextmanager(function)
        self._name = function.__name__
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> "Resource[T]": ...

    @overload
    def __get__(self, instance: Any, owner: type[Any]) -> T: ...

    def __get__(self, instance: Any, owner: type[Any]) -> "Resource[T] | T":
        if instance is None:
            return self
        raise UsageError(f"{owner.__name__}.{self._name} is open only from `on_start` to `on_stop`")

    async def enter(self, service: Any, stack: AsyncExitStack) -> None:
        """Open it for a service, until the stack is closed."""
        found = await stack.enter_async_context(self._open(service))
        service.__dict__[self._name] = found  # which takes precedence over `__get__`
        stack.callback(service.__dict__.pop, self._name, None)


class _Fixed:
    """An attribute with a value, which is not bound to the service even if it is a function."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __get__(self, instance: object, owner: type[Any]) -> object:
        return self._value


def resource(function: Callable[[Any], AsyncGenerator[T, None]]) -> Resource[T]:
    """Turn an asynchronous generator method into an attribute with what it yields.

    It runs to its `yield` before `on_start`, and on from there after `on_stop`, also after a crash. Several are opened in the order of
    their definition, and closed in reverse. A failure is one of the service's start. A test replaces it:
    `runtime.testing.replaced(Mailer, provider=FakeProvider())`.

        @resource
        async def provider(self) -> AsyncGenerator[httpx.AsyncClient, None]:
            async with httpx.AsyncClient(base_url=self.settings.url) as client:
                yield client
    """
    return Resource(function)


def resources_of(cls: type[Any]) -> dict[str, Resource[Any]]:
    """Return the resources of a service class in the order of their definition, those of base classes first."""
    found: dict[str, Any] = {}
    for ancestor in reversed(cls.__mro__):
        for name, value in vars(ancestor).items():
            if isinstance(value, Resource) or name in found:
                found[name] = value
    return {name: value for name, value in found.items() if isinstance(value, Resource)}


async def open_resources(service: object, stack: AsyncExitStack) -> None:
    """Open all resources of a service, until the stack is closed."""
    for one in resources_of(type(service)).values():
        await one.enter(service, stack)


def replaced(cls: type[T], **values: Any) -> type[T]:
    """Return a class like a service's, with values in place of some of its resources, which are then never opened.

    Raises:
        DefinitionError: if the class has no such resource.
    """
    known = resources_of(cls)
    for name in values:
        if name not in known:
            raise DefinitionError(f"{cls.__name__} has no resource {name!r}: it has {', '.join(known) or 'none'}")
    attributes = {name: _Fixed(value) for name, value in values.items()}
    made: Any = type(cls.__name__, (cls,), {"__module__": cls.__module__, "__qualname__": cls.__qualname__, **attributes})
    return cast(type[T], made)
