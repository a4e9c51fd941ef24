"""The contract of the auth service: users, sessions, and the requests of the runtime for keys and revocations."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Struct
from runtime.identity import identity

auth = Contract("auth", extends=identity)

Role = Literal["rider", "operator", "admin"]
ROLES = ("rider", "operator", "admin")

_CONTROL = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff"
"""The characters that no text of a user may have, as part of a character class: the C0 and C1 controls, those that change the
direction or the lines of the text around them (bidi controls and separators), and noncharacters."""

# `$` alone would accept a trailing newline
_EMAIL = rf"^(?!.*[{_CONTROL}])[^@\s]{{1,64}}@[^@\s]{{1,180}}\.[^@\s.]{{1,63}}$(?!\n)"
Email = Annotated[str, Meta(pattern=_EMAIL, max_length=254)]
MIN_LENGTH = 8
"""Characters of a new password, at least."""
NewPassword = Annotated[str, Meta(min_length=MIN_LENGTH, max_length=256)]
Password = Annotated[str, Meta(max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=rf"^[^{_CONTROL}]+$(?!\n)")]


class User(Struct):
    """A user account."""

    id: str
    email: str
    name: str
    role: Role
    disabled: bool
    created_at: datetime


class Tokens(Struct):
    """An access token, sent as `Authorization: Bearer …` and valid for `expires_in` seconds, and the refresh token that renews it."""

    __secret__: ClassVar = frozenset({"access_token", "refresh_token"})

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"]
    expires_in: int


@auth.message
class Register(Request[User]):
    """Register as a rider."""

    __secret__: ClassVar = frozenset({"password"})

    email: Email
    password: NewPassword
    name: Name


@auth.message
class Login(Request[Tokens]):
    """Log in and start a session."""

    __secret__: ClassVar = frozenset({"password"})

    email: Annotated[str, Meta(max_length=254)]
    password: Password


@auth.message
class Refresh(Request[Tokens]):
    """Renew the tokens of a session.

    A refresh token can be used once. Sent again, for example because the reply was lost, it gives the same new refresh token,
    until that is used in turn. After that, it ends the session.
    """

    __secret__: ClassVar = frozenset({"refresh_token"})

    refresh_token: Annotated[str, Meta(max_length=256)]


@auth.message
class Logout(Request[None]):
    """End the session to which the access token belongs."""


@auth.message
class GetMe(Request[User]):
    """Return the authenticated user."""


@auth.message
class ChangePassword(Request[None]):
    """Change the password. This ends all sessions of the user."""

    __secret__: ClassVar = frozenset({"old", "new"})

    old: Password
    new: NewPassword


@auth.message
class UpdateUser(Request[User]):
    """Change the role of a user, or disable or enable the user. This ends all sessions of the user."""

    id: str
    role: Role | None = None
    disabled: bool | None = None


class SigningKey(Struct):
    """A key that signs access tokens.

    Attributes:
        kid: its id, which is in the header of every token that it signs.
        state: whether it signs, is published and signs later, or signs no more and stays valid until it retires.
        signs_from: when it signs first.
        retires: from when on its tokens are refused; None if no other key has been published since.
    """

    kid: str
    state: Literal["published", "signs", "retiring"]
    signs_from: datetime
    retires: datetime | None


class SigningKeyList(Struct):
    """The keys that have not retired, the oldest first."""

    items: tuple[SigningKey, ...]


@auth.message
class ListSigningKeys(Request[SigningKeyList]):
    """The keys that sign access tokens."""


@auth.message
class RotateSigningKeys(Request[SigningKeyList]):
    """Publish a new key, which takes over from the one that signs once every service knows it."""


@auth.message
class RetireSigningKey(Request[None]):
    """Retire a key at once, because it has become known. Its tokens are refused within half a minute."""

    kid: str


@auth.message
class UserRegistered(Event):
    """A user has registered."""

    user_id: str
    role: Role


@auth.message
class EmailTaken(ServiceError):
    """This e-mail address is already registered."""

    code, status = "email-taken", 409


@auth.message
class WrongCredentials(ServiceError):
    """The e-mail address or the password is wrong."""

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
    """Too many failed logins: try again later."""

    code, status = "too-many-attempts", 429
    retryable = True
    retry_after: int


@auth.message
class UnknownUser(ServiceError):
    """There is no such user."""

    code, status = "unknown-user", 404


@auth.message
class UnknownSigningKey(ServiceError):
    """There is no such signing key, or it has retired."""

    code, status = "unknown-signing-key", 404
