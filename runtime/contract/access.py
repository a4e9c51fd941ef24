"""Who may call: the `allow=` of a handler."""

import re
from collections.abc import Sequence

import msgspec

from runtime.contract.errors import DefinitionError, Forbidden, Unauthenticated

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class Allow(msgspec.Struct, frozen=True):
    """Who may make a request. Combine two with `|`.

    Attributes:
        anyone: everybody, with or without an access token.
        every_service: every calling service.
        roles: users whose access token has one of these roles, through any service.
        scopes: users whose access token has one of these scopes.
        services: calling services, by name.
    """

    anyone: bool = False
    every_service: bool = False
    roles: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    def __or__(self, other: "Allow") -> "Allow":
        return Allow(
            self.anyone or other.anyone,
            self.every_service or other.every_service,
            tuple(dict.fromkeys(self.roles + other.roles)),
            tuple(dict.fromkeys(self.services + other.services)),
            tuple(dict.fromkeys(self.scopes + other.scopes)),
        )

    @property
    def outside(self) -> bool:
        """Whether a REST client may make the request at all."""
        return self.anyone or bool(self.roles or self.scopes)

    def require_user(self, roles: Sequence[str] | None, scopes: Sequence[str] = ()) -> None:
        """Check that a user may make the request.

        Args:
            roles: the roles in the user's token; None without a token.
            scopes: its scopes.

        Raises:
            Unauthenticated: if there is no token and some users may make the request.
            Forbidden: if users with these roles and scopes may not make it.
        """
        if not (self.roles or self.scopes):
            raise Forbidden
        if roles is None:
            raise Unauthenticated()
        if not any(role in self.roles for role in roles) and not any(scope in self.scopes for scope in scopes):
            raise Forbidden

    def shown(self) -> str:
        """Return who may make the request, for people."""
        named = [*self.roles, *self.scopes, *self.services, *(["every service"] if self.every_service else [])]
        return "anyone" if self.anyone else ", ".join(named)


ANYONE = Allow(anyone=True)
"""Everybody, with or without an access token. A token that comes along has to be valid; the user is `ctx.identity`."""

SERVICES = Allow(every_service=True)
"""Every service, on behalf of any user or none."""


def roles(*names: str) -> Allow:
    """Allow users whose token has any of these roles."""
    if not names:
        raise DefinitionError("roles() needs at least one role")
    _require_texts("roles", names)
    return Allow(roles=names)


def scopes(*names: str) -> Allow:
    """Allow users whose token has any of these scopes (RFC 6749, section 3.3), such as `rides:write`.

    With `roles(…) | scopes(…)`, either of them is enough.
    """
    if not names:
        raise DefinitionError("scopes() needs at least one scope")
    _require_texts("scopes", names)
    for name in names:
        if not _SCOPE.fullmatch(name):
            raise DefinitionError(
                f"scopes({name!r}): expected printable ASCII characters, without spaces, quotes, and backslashes"
            )
    return Allow(scopes=names)


def services(*names: str) -> Allow:
    """Allow the services of these names, on behalf of any user or none."""
    if not names:
        raise DefinitionError("services() needs at least one name; SERVICES allows every service")
    _require_texts("services", names)
    return Allow(services=names)


def _require_texts(function: str, names: Sequence[object]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise DefinitionError(f"{function}({name!r}): expected one or several texts, as {function}('one', 'another')")
