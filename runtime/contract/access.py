"""Who may call: the `allow=` of a handler."""

import msgspec

from runtime.contract.errors import DefinitionError, Forbidden, Unauthenticated


class Allow(msgspec.Struct, frozen=True):
    """Who may make a request. Combine two with `|`.

    Attributes:
        anyone: everybody, with or without an access token.
        every_service: every calling service.
        roles: users whose access token has one of these roles, through any service.
        services: calling services, by name.
    """

    anyone: bool = False
    every_service: bool = False
    roles: tuple[str, ...] = ()
    services: tuple[str, ...] = ()

    def __or__(self, other: "Allow") -> "Allow":
        return Allow(
            self.anyone or other.anyone,
            self.every_service or other.every_service,
            tuple(dict.fromkeys(self.roles + other.roles)),
            tuple(dict.fromkeys(self.services + other.services)),
        )

    @property
    def outside(self) -> bool:
        """Whether a REST client may make the request at all."""
        return self.anyone or bool(self.roles)

    def require_role(self, role: str | None) -> None:
        """Check that a user may make the request.

        Args:
            role: the role in the user's token; None without a token.

        Raises:
            Unauthenticated: if there is no token and some users may make the request.
            Forbidden: if users of this role may not make it.
        """
        if not self.roles:
            raise Forbidden
        if role is None:
            raise Unauthenticated()
        if role not in self.roles:
            raise Forbidden


ANYONE = Allow(anyone=True)
"""Everybody, with or without an access token. A token is not even verified, except on a `once` request with an idempotency key."""

SERVICES = Allow(every_service=True)
"""Every service, on behalf of any user or none."""


def roles(*names: str) -> Allow:
    """Allow users with one of these roles."""
    if not names:
        raise DefinitionError("roles() needs at least one role")
    return Allow(roles=names)


def services(*names: str) -> Allow:
    """Allow the services of these names, on behalf of any user or none."""
    if not names:
        raise DefinitionError("services() needs at least one name; SERVICES allows every service")
    return Allow(services=names)
