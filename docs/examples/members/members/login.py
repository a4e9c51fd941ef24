"""A login of your own: it signs the tokens that every other service verifies."""

import base64
import hmac

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import ANYONE, SERVICES, Context, Contract, Request, Secret, Service, ServiceError, Struct, handles
from runtime.identity import Key, Keys, KeySet, Revocations, RevokedSessions, identity

auth = Contract("auth", extends=identity)


class Member(Struct):
    name: str
    password: Secret[str]
    roles: tuple[str, ...] = ("member",)


class LoginSettings(Struct):
    members: tuple[Member, ...] = ()


@auth.message
class LogIn(Request[str]):
    """Exchange a name and a password for an access token."""

    name: str
    password: Secret[str]


@auth.message
class Refused(ServiceError):
    """The name or the password is wrong."""

    code, status = "refused", 401


class Login(Service):
    contract = auth
    Settings = LoginSettings
    settings: LoginSettings

    async def on_start(self, ctx: Context) -> None:
        self.key, self.kid = Ed25519PrivateKey.generate(), self.random.hex(8)  # a restart logs everybody out

    @handles(http="POST /login", allow=ANYONE, raises=(Refused,))
    async def log_in(self, message: LogIn, ctx: Context) -> str:
        for member in self.settings.members:
            if member.name == message.name and hmac.compare_digest(member.password.encode(), message.password.encode()):
                now = int(self.clock.timestamp())
                claims = {
                    "iss": "callboard", "aud": "callboard", "sub": member.name, "roles": member.roles,
                    "sid": self.random.hex(16), "jti": self.random.hex(16), "iat": now, "exp": now + 600,
                }  # fmt: skip
                return jwt.encode(claims, self.key, "EdDSA", {"typ": "at+jwt", "kid": self.kid})
        raise Refused

    @handles(allow=SERVICES, idempotent=True)
    async def key_set(self, message: KeySet, ctx: Context) -> Keys:
        x = base64.urlsafe_b64encode(self.key.public_key().public_bytes_raw()).decode().rstrip("=")
        return Keys((Key(self.kid, x),))

    @handles(allow=SERVICES, idempotent=True)
    async def revocations(self, message: Revocations, ctx: Context) -> RevokedSessions:
        return RevokedSessions(message.version, ())  # nobody can log out before the token expires
