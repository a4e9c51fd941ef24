"""The auth service: users, sessions, and tokens. Every other service verifies the tokens on its own."""

from typing import Annotated

from msgspec import Meta

from runtime import (
    ANYONE,
    SERVICES,
    Context,
    Invalid,
    Secret,
    Service,
    StartError,
    Struct,
    Transaction,
    Violation,
    every,
    handles,
    roles,
    services,
)
from runtime.identity import MAX_LIFETIME, Keys, KeySet, Revocations, RevokedSessions, SessionsRevoked, TokenSettings
from runtime.repeats import Repeats
from runtime.telemetry import log_key_change, log_refusal
from services.auth.keys import SigningKeys
from services.auth.login_throttle import LoginThrottle
from services.auth.messages import (
    ROLES,
    ChangePassword,
    EmailTaken,
    GetMe,
    ListSigningKeys,
    Login,
    Logout,
    Refresh,
    Register,
    RetireSigningKey,
    Role,
    RotateSigningKeys,
    SessionEnded,
    SigningKeyList,
    Tokens,
    TooManyAttempts,
    UnknownSigningKey,
    UnknownUser,
    UpdateUser,
    User,
    UserRegistered,
    WrongCredentials,
    WrongPassword,
    auth,
)
from services.auth.normal_forms import canonical_email
from services.auth.password_rules import weakness
from services.auth.passwords import MAX_WAITING, HashSettings, Passwords
from services.auth.store import Session, Store

_ELSEWHERE = "elsewhere"
"""The source for which changes of a password count from every address where the user has not logged in."""


class SeedUser(Struct):
    """A user that the settings create, with a role and a password."""

    email: str
    role: Role
    password: Secret[str]


class AuthSettings(Struct):
    """The settings of the auth service. Durations are in seconds."""

    access_seconds: Annotated[int, Meta(ge=1, le=900)] = 600
    """The lifetime of an access token, at most 900."""
    session_seconds: Annotated[int, Meta(ge=1)] = 30 * 24 * 3600
    """The lifetime of a session, after which the user has to log in again."""
    rotate_seconds: Annotated[float, Meta(gt=0)] = 30 * 24 * 3600
    """The age at which a signing key is replaced."""
    publish_lead_seconds: Annotated[float, Meta(ge=0)] = 60
    """The time between the publication of a signing key and its first use."""
    hashing: HashSettings = HashSettings()
    tokens: TokenSettings = TokenSettings()
    users: tuple[SeedUser, ...] = ()


class Auth(Service):
    """Registers users and logs them in. No other service has passwords or private keys."""

    contract = auth
    concurrency = 2 * MAX_WAITING  # requests that wait for a hashing thread must not block requests for keys
    Settings = AuthSettings
    settings: AuthSettings

    def __init__(self, settings: AuthSettings | None = None) -> None:
        super().__init__(settings)
        for seed in self.settings.users:
            reason = weakness(seed.password, seed.email)
            if reason is not None:
                raise StartError(f"auth.users: {seed.email}: {reason}: choose another one")
        self.passwords = Passwords(self.settings.hashing)

    async def on_start(self, ctx: Context) -> None:
        self.repeats = Repeats(self.clock)
        self.login_throttle = LoginThrottle(self.clock)
        self.store = Store(self.db, self.clock, self.random)
        self.keys = SigningKeys(self.db, self.clock, self.settings.publish_lead_seconds)
        await self.keys.load()
        for user_id in await self.store.canonicalize_emails():
            self.log.warning("two users have one e-mail address in different spellings: change that of %s", user_id)
        for seed in {
            canonical_email(seed.email): seed for seed in self.settings.users
        }.values():  # the last entry for an address wins
            await self._apply_seed(seed)

    async def _apply_seed(self, seed: SeedUser) -> None:
        """Create a user of the settings, or set the user's password if it differs from the one that the settings had last.

        So a password that the user has changed survives a restart, and a new password in the settings takes effect once.
        """
        applied = await self.store.seed_hash(seed.email)
        if applied is not None and await self.passwords.matches(applied, seed.password):
            return
        known = await self.store.user_by_email(seed.email)
        already_set = known is not None and await self.passwords.matches(known[1], seed.password)
        password_hash = known[1] if known is not None and already_set else await self.passwords.hash(seed.password)
        try:
            await self._store_seed(seed, known, password_hash, already_set=already_set)
        except EmailTaken:
            return  # another instance has just created the user

    async def _store_seed(self, seed: SeedUser, known: tuple[User, str] | None, password_hash: str, *, already_set: bool) -> None:
        async with self.db.transaction() as tx:
            if known is None:
                user = await self.store.add_user(tx, seed.email, password_hash, seed.email.partition("@")[0].title(), seed.role)
                await tx.publish(UserRegistered(user.id, user.role))
            elif not already_set:
                if not await self.store.change_password(tx, known[0].id, known[1], password_hash):
                    return  # the user has just changed it
                await self.store.revoke_user(tx, known[0].id)
            await self.store.record_seed(tx, seed.email, password_hash)

    # Users

    @handles(http="POST /users", status=201, allow=ANYONE, raises=(EmailTaken,))
    async def register(self, message: Register, ctx: Context, tx: Transaction) -> User:
        _refuse_weak("/password", message.password, message.email)
        password_hash = await self.passwords.hash(message.password)
        user = await self.store.add_user(tx, message.email, password_hash, message.name, "rider")
        await tx.publish(UserRegistered(user.id, user.role))
        return user

    @handles(http="GET /users/me", allow=roles(*ROLES), raises=(UnknownUser,))
    async def get_me(self, message: GetMe, ctx: Context) -> User:
        user = await self.store.user(ctx.user.subject)
        if user is None:
            raise UnknownUser
        return user

    @handles(http="POST /users/me/password", status=204, allow=roles(*ROLES), raises=(WrongPassword, TooManyAttempts))
    async def change_password(self, message: ChangePassword, ctx: Context, tx: Transaction) -> None:
        user_id, source = ctx.user.subject, _source(ctx)
        # A stolen token must not try ten passwords from each of many addresses: all that are not the user's own count as one
        counted = source if await self.store.is_familiar(user_id, source) else _ELSEWHERE
        self._record_attempt(user_id, counted, user_id, familiar=True)
        old_hash = await self.store.password_hash(user_id)
        if old_hash is None or not await self.passwords.matches(old_hash, message.old):
            self._log_refusal("wrong old password", source, user_id)
            raise WrongPassword
        self.login_throttle.reset(user_id, counted)
        user = await self.store.user(user_id)
        _refuse_weak("/new", message.new, "" if user is None else user.email)
        if not await self.store.change_password(tx, user_id, old_hash, await self.passwords.hash(message.new)):
            raise WrongPassword
        await self.store.revoke_user(tx, user_id)
        await ctx.publish(SessionsRevoked())

    @handles(http="PATCH /users/{id}", allow=roles("admin"), raises=(UnknownUser,))
    async def update_user(self, message: UpdateUser, ctx: Context, tx: Transaction) -> User:
        user = await self.store.update_user(tx, message.id, message.role, message.disabled)
        if user is None:
            raise UnknownUser
        await self.store.revoke_user(tx, user.id)
        await ctx.publish(SessionsRevoked())
        return user

    # Sessions

    @handles(http="POST /sessions", status=201, allow=ANYONE, raises=(WrongCredentials, TooManyAttempts))
    async def login(self, message: Login, ctx: Context, tx: Transaction) -> Tokens:
        email, source = canonical_email(message.email), _source(ctx)
        known, familiar = await self.store.user_at(message.email, source)
        user_id = None if known is None else known[0].id
        self._record_attempt(email, source, user_id, familiar=familiar)
        matches = await self.passwords.matches(None if known is None else known[1], message.password)
        if known is None or not matches or known[0].disabled:
            reason = "unknown user" if known is None else "disabled user" if matches else "wrong password"
            self._log_refusal(reason, source, user_id)
            raise WrongCredentials
        user, password_hash = known
        session = await self.store.begin_session(tx, user, password_hash, self.settings.session_seconds)
        if session is None:
            raise WrongCredentials
        await self.store.record_source(tx, user.id, source)
        self.login_throttle.reset(email, source)
        sid, refresh_token = session
        return await self._tokens(Session(sid, user), refresh_token)

    @handles(http="POST /sessions/refresh", status=201, allow=ANYONE, raises=(SessionEnded,))
    async def refresh(self, message: Refresh, ctx: Context) -> Tokens:
        # Not the handler's `tx`, which would roll back when the handler raises: a session that ends here must stay ended
        async with self.db.transaction() as tx:
            renewed = await self.store.rotate(tx, message.refresh_token)
        if renewed is None:
            await ctx.publish(SessionsRevoked())
            log_refusal(
                self.repeats,
                "token",
                "the refresh token is unknown, used, or of an ended session",
                service=self.name,
                client=_source(ctx),
            )
            raise SessionEnded
        return await self._tokens(*renewed)

    @handles(http="DELETE /sessions/current", status=204, allow=roles(*ROLES))
    async def logout(self, message: Logout, ctx: Context, tx: Transaction) -> None:
        await self.store.revoke_session(tx, ctx.user.session)
        await ctx.publish(SessionsRevoked())

    def _record_attempt(self, account: str, source: str, user_id: str | None, *, familiar: bool) -> None:
        try:
            self.login_throttle.record_attempt(account, source, familiar=familiar)
        except TooManyAttempts:
            self._log_refusal("too many attempts", source, user_id)
            raise

    def _log_refusal(self, reason: str, source: str, user_id: str | None) -> None:
        """Log a refused login. The e-mail address is left out, because people type passwords into its field."""
        log_refusal(self.repeats, "login", reason, service=self.name, user=user_id, client=source)

    async def _tokens(self, session: Session, refresh_token: str) -> Tokens:
        now = int(self.clock.timestamp())
        self.clock.possible()  # remembers this time of day: the token stays valid if the clock is set next
        lifetime = min(self.settings.access_seconds, MAX_LIFETIME)
        claims = {
            "iss": self.settings.tokens.issuer,
            "aud": self.settings.tokens.audience,
            "sub": session.user.id,
            "role": session.user.role,
            "sid": session.sid,
            "jti": str(self.random.uuid7()),
            "iat": now,
            "exp": now + lifetime,
        }
        await self.keys.refresh()
        return Tokens(self.keys.sign(claims), refresh_token, "Bearer", lifetime)

    # Signing keys, for admins at the gateway's console

    @handles(allow=services("gateway"), idempotent=True)
    async def list_signing_keys(self, message: ListSigningKeys, ctx: Context) -> SigningKeyList:
        await self.keys.refresh()
        return SigningKeyList(self.keys.shown())

    @handles(allow=services("gateway"))
    async def rotate_signing_keys(self, message: RotateSigningKeys, ctx: Context) -> SigningKeyList:
        await self.keys.rotate()
        log_key_change("published", service="auth", reason="an admin has asked for a new signing key")
        return SigningKeyList(self.keys.shown())

    @handles(allow=services("gateway"), raises=(UnknownSigningKey,))
    async def retire_signing_key(self, message: RetireSigningKey, ctx: Context) -> None:
        if not await self.keys.retire(message.kid):
            raise UnknownSigningKey
        log_key_change("retired", service="auth", kid=message.kid, reason="an admin has asked for it")

    # Requests of the runtime

    async def on_stop(self, ctx: Context) -> None:
        self.repeats.close()

    @handles(allow=ANYONE, idempotent=True)
    async def key_set(self, message: KeySet, ctx: Context) -> Keys:
        await self.keys.refresh()
        return self.keys.published()

    @handles(allow=SERVICES, idempotent=True)
    async def revocations(self, message: Revocations, ctx: Context) -> RevokedSessions:
        return await self.store.revoked_since(message.version)

    @every(seconds=60)
    async def clean_up(self, ctx: Context) -> None:
        """Rotate the signing keys when they are due, and delete expired sessions."""
        await self.keys.rotate_if_older(self.settings.rotate_seconds)
        await self.store.prune(self.settings.session_seconds)


def _refuse_weak(pointer: str, password: str, email: str) -> None:
    """Refuse a new password that an attacker would try first.

    Raises:
        Invalid: if it is too common, or is the e-mail address of the account.
    """
    reason = weakness(password, email)
    if reason is not None:
        raise Invalid((Violation(pointer, reason),))


def _source(ctx: Context) -> str:
    """Return where a login comes from: the address of the gateway's client, or a service that calls on its own account.

    What another service says about the address does not count, or it could try one password from each.
    """
    return ctx.client_address or "" if ctx.caller == "gateway" else f"service {ctx.caller}"
