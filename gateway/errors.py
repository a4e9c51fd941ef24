"""The form in which clients receive errors, which a project may choose.

By default it is the problem document (RFC 9457). `[gateway] errors = "shop.errors:ShopErrors"` names another one.
"""

import inspect
import re
import typing
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgspec

from runtime import DefinitionError, Struct, Violation
from runtime.contract.schema import Schemas

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?[A-Za-z0-9=._-]+)*")


class ErrorReport(Struct):
    """An error as a client may learn of it."""

    status: int
    """The HTTP status of the response."""
    code: str
    """The stable, machine-readable name of the error, such as `not-found`, or the `code` of a `ServiceError`."""
    title: str
    """What the error is, in words."""
    request_id: str
    """The id of the request, which the log has as well."""
    retryable: bool
    """Whether the same request may succeed later."""
    detail: str = ""
    """What is special about this occurrence."""
    contract: str = "callboard"
    """The contract that the error belongs to; `callboard` for those of the runtime and the gateway."""
    fields: Any = None
    """The fields of a `ServiceError`, by their names in JSON."""
    violations: tuple[Violation, ...] = ()
    """What is wrong with the request, if its validation has failed: where (a JSON pointer), and what was expected."""
    maybe_delivered: bool = False
    """Whether the request may have had an effect although it failed."""
    incident: str = ""
    """The id under which the log has the details of a failure."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What is wrong, as texts for people: each violation with its place, or else the detail or the title, and the incident."""
        if self.violations:
            return tuple(
                f"{found.pointer.lstrip('/').replace('/', '.')}: {found.detail}".removeprefix(": ") for found in self.violations
            )
        return (f"{self.detail or self.title}{f' ({self.incident})' if self.incident else ''}",)


class ErrorRenderer(ABC):
    """Makes the body of a response to an error. Subclass it in the project, with a struct as the return type of `render`.

    Attributes:
        media_type: the `Content-Type` of the responses.
    """

    media_type: ClassVar[str] = "application/json"

    @abstractmethod
    def render(self, error: ErrorReport) -> Struct:
        """Return the body, which becomes JSON. OpenAPI describes the type that the subclass annotates."""

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        """Return the JSON Schema of the body, with a reference into `schemas`.

        Raises:
            DefinitionError: if `render` is `async`, or has no annotation that is a struct, or the media type is none.
        """
        render = type(self).render
        if inspect.iscoroutinefunction(render):
            raise DefinitionError(f"{type(self).__qualname__}.render: it cannot wait: write `def`, not `async def`", render)
        media_type: Any = self.media_type
        if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
            raise DefinitionError(
                f"{type(self).__qualname__}: media_type={media_type!r}: expected one such as 'application/json'", render
            )
        found = typing.get_type_hints(render).get("return")
        if not (isinstance(found, type) and issubclass(found, msgspec.Struct)) or found is Struct:
            raise DefinitionError(
                f"{type(self).__qualname__}.render: annotate the struct that it returns, as `-> ShopError`", render
            )
        return schemas.of(found)
