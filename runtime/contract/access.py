"""Who may call: the `allow=` of a handler."""

import msgspec

from runtime.contract.errors import DefinitionError


class Allow(msgspec.Struct, frozen=True):
    """Who may make a request. Combine two with `|`.

    `roles`: users whose access token has one of these roles, through whatever service. `services`: calling services
    by name; `every_service`: all of them. `anyone`: everybody, with or without a token.
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
        """Whether a REST client can be let in at all."""
        return self.anyone or bool(self.roles)


ANYONE = Allow(anyone=True)
"""Everybody, with or without an access token. A token that comes along is not looked at."""

SERVICES = Allow(every_service=True)
"""Every service, whatever the user."""


def roles(*names: str) -> Allow:
    """Users with one of these roles."""
    if not names:
        raise DefinitionError("roles() needs at least one role")
    return Allow(roles=names)


def services(*names: str) -> Allow:
    """The services of these names, whatever the user."""
    if not names:
        raise DefinitionError("services() needs at least one name; SERVICES lets every service in")
    return Allow(services=names)
