"""What the auth service publishes: users, sessions, and the runtime's own questions about keys and revocations."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Struct
from runtime.identity import identity

auth = Contract("auth", extends=identity)

Role = Literal["rider", "operator", "admin"]
ROLES = ("rider", "operator", "admin")

# `$` alone would let a last newline through
Email = Annotated[
    str, Meta(pattern=r"^[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,180}\.[^@\s.\x00-\x1f]{1,63}$(?!\n)", max_length=254)
]
NewPassword = Annotated[str, Meta(min_length=8, max_length=256)]
Password = Annotated[str, Meta(max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]


class User(Struct):
    """Somebody who can log in."""

    id: str
    email: str
    name: str
    role: Role
    disabled: bool
    created_at: datetime


class Tokens(Struct):
    """An access token, sent as `Authorization: Bearer …` for `expires_in` seconds, and the token to renew it with."""

    __secret__: ClassVar = frozenset({"access_token", "refresh_token"})

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"]
    expires_in: int


@auth.message
class Register(Request[User]):
    """Become a rider."""

    __secret__: ClassVar = frozenset({"password"})

    email: Email
    password: NewPassword
    name: Name


@auth.message
class Login(Request[Tokens]):
    """Begin a session."""

    __secret__: ClassVar = frozenset({"password"})

    email: Annotated[str, Meta(max_length=254)]
    password: Password


@auth.message
class Refresh(Request[Tokens]):
    """Renew a session's tokens. A refresh token serves once; using an old one again ends the session."""

    __secret__: ClassVar = frozenset({"refresh_token"})

    refresh_token: Annotated[str, Meta(max_length=256)]


@auth.message
class Logout(Request[None]):
    """End the session that the access token belongs to."""


@auth.message
class GetMe(Request[User]):
    """Who am I?"""


@auth.message
class ChangePassword(Request[None]):
    """Choose another password. Every session of the user ends."""

    __secret__: ClassVar = frozenset({"old", "new"})

    old: Password
    new: NewPassword


@auth.message
class UpdateUser(Request[User]):
    """Give a user another role, or disable or enable them. Their sessions end."""

    id: str
    role: Role | None = None
    disabled: bool | None = None


@auth.message
class UserRegistered(Event):
    """There is a new user."""

    user_id: str
    role: Role


@auth.message
class EmailTaken(ServiceError):
    """Somebody has registered with this e-mail address."""

    code, status = "email-taken", 409


@auth.message
class WrongCredentials(ServiceError):
    """E-mail address or password is wrong."""

    code, status = "wrong-credentials", 401


@auth.message
class WrongPassword(ServiceError):
    """The old password is wrong."""

    code, status = "wrong-password", 403


@auth.message
class SessionEnded(ServiceError):
    """The session has ended: log in again."""

    code, status = "session-ended", 401


@auth.message
class TooManyAttempts(ServiceError):
    """Too many failed logins: wait a little."""

    code, status = "too-many-attempts", 429
    retryable = True
    retry_after: int


@auth.message
class UnknownUser(ServiceError):
    """There is no such user."""

    code, status = "unknown-user", 404
