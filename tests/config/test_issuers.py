"""Other issuers of access tokens: a real OpenID Connect provider, and one that does what the tests want."""

import asyncio
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config import compose
from config.jwks import issuers
from config.load import load
from config.provision import provision
from config.values import SettingsError
from gateway.service import Gateway
from gateway.settings import GatewaySettings, IdentitySettings
from runtime import (
    CallboardError,
    Clock,
    Context,
    Contract,
    Identity,
    ManualClock,
    Node,
    Request,
    Service,
    TokenSettings,
    Transaction,
    Unauthenticated,
    Unreachable,
    handles,
    roles,
)
from runtime.identity import Verifier
from runtime.issuers import IssuerSettings
from runtime.metrics import Metrics
from runtime.sockets import any_free_port, is_listening
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import check_problem
from tests.gateway.probe import Probe
from tests.project import RENTAL, rental

AUDIENCE = "rides"
PAYLOAD = {"sub": "u1", "roles": ["rider", "editor"], "scope": "rides:read rides:write"}
Sign = Callable[..., str]


counter = Contract("counter")


@counter.message
class Count(Request[int]):
    pass


class Counter(Service):
    contract = counter

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    @handles(allow=roles("rider"), once=True)
    async def count(self, message: Count, ctx: Context, tx: Transaction) -> int:
        self.number += 1
        return self.number


async def never(_: object) -> Any:
    raise AssertionError("the auth service was asked")


def verifier(*settings: IssuerSettings, clock: Clock | None = None) -> Verifier:
    found = issuers(msgspec.structs.replace(RENTAL, identity=IdentitySettings(issuers=settings)))
    return Verifier(TokenSettings(), clock or Clock(), Metrics(), never, found)


class Provider:
    """A provider over TLS with keys of every kind, whose answers the tests change."""

    def __init__(self) -> None:
        self.private: dict[str, tuple[str, Any]] = {
            "rsa": ("RS256", rsa.generate_private_key(65537, 2048)),
            "ec": ("ES256", ec.generate_private_key(ec.SECP256R1())),
            "ed": ("EdDSA", Ed25519PrivateKey.generate()),
        }
        self.url = self.ca_file = ""
        self.requests = self.at_once = self.most_at_once = 0
        self.status = 200
        self.hidden: set[str] = set()
        self.more: list[dict[str, Any]] = []
        self.body: bytes | None = None

    @property
    def settings(self) -> IssuerSettings:
        return IssuerSettings(self.url, AUDIENCE, jwks_url=f"{self.url}/keys", ca_file=self.ca_file)

    def token(self, kid: str = "rsa", *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        algorithm, key = self.private[kid]
        """Return a token. Integers in `iat` and `exp` count from now."""
        payload = {"iss": self.url, "aud": AUDIENCE, "iat": -1, "exp": 300, **PAYLOAD, **claims}
        payload |= {name: int(time.time()) + payload[name] for name in ("iat", "exp") if isinstance(payload[name], int)}
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key, algorithm, headers={"kid": kid, **(header or {})})

    def jwks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for kid, (algorithm, key) in self.private.items():
            if kid not in self.hidden:
                jwk: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
                found.append({"kid": kid, **jwk})
        return [*found, *self.more]

    async def keys(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)  # others would overlap
        self.at_once -= 1
        body = msgspec.json.encode({"keys": self.jwks()}) if self.body is None else self.body
        return web.Response(body=body, status=self.status, content_type="application/json")

    async def metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys", "response_types_supported": ["code"]})


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncGenerator[Provider, None]:
    provision(tmp_path / "secrets", RENTAL)
    made = Provider()
    made.ca_file = str(tmp_path / "secrets/shared/ca.pem")
    app = web.Application()
    app.router.add_get("/keys", made.keys)
    app.router.add_get("/.well-known/openid-configuration", made.metadata)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "secrets/auth/certificate.pem", tmp_path / "secrets/auth/private-key.pem")
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    made.url = f"https://localhost:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


@asynccontextmanager
async def openid_connect_provider() -> AsyncGenerator[str, None]:
    """Run a provider with the user alice, who is a rider, and yield its URL."""
    port = any_free_port()
    command = ["-m", "oidc_provider_mock", "--port", str(port), "--user-claims", '{"sub": "alice", "groups": ["rider"]}']
    process = await asyncio.create_subprocess_exec(sys.executable, "-W", "ignore", *command, stderr=asyncio.subprocess.DEVNULL)
    try:
        await eventually(lambda: is_listening("127.0.0.1", port), "the provider listens", 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_a_login_at_an_openid_connect_provider_is_accepted() -> None:
    """With the metadata, the keys, and the ID token of a real provider, and the authorization code flow in a browser."""
    async with openid_connect_provider() as url:
        async with httpx.AsyncClient(base_url=url, verify=False) as browser:
            query = {"client_id": "scooters", "redirect_uri": "https://app.test/back", "response_type": "code", "scope": "openid"}
            sent = await browser.post("/oauth2/authorize", params=query, data={"sub": "alice"})
            code = parse_qs(urlsplit(sent.headers["location"]).query)["code"][0]
            form = {"grant_type": "authorization_code", "code": code, "redirect_uri": query["redirect_uri"]}
            answer = await browser.post("/oauth2/token", data=form, auth=("scooters", "secret"))
            token = answer.json()["id_token"]
        settings = rental(
            identity=IdentitySettings(issuers=(IssuerSettings(url, "scooters", role_claim="groups"),)),
            gateway=GatewaySettings(port=0),
        )
        made = verifier(*settings.identity.issuers)
        found = await made.verify(token)
        assert (found.subject, found.roles, found.issuer) == ("alice", ("rider",), url)
        assert made.cached(token) == found
        with pytest.raises(Unauthenticated, match="udience"):
            await verifier(IssuerSettings(url, "other")).verify(token)


async def test_every_service_verifies_the_tokens_itself(provider: Provider) -> None:
    """The gateway and the service behind it, with and without an auth service, whose own tokens count as before."""
    settings = rental(identity=IdentitySettings(issuers=(provider.settings,)), gateway=GatewaySettings(port=0))
    gateway = Gateway(settings.gateway, None, settings.identity)
    node = Node([FakeAuth, Probe, lambda: gateway], compose.transport(settings), issuers=issuers(settings))
    async with node, httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", verify=False) as client:
        await node.registry.wait_for("probe", "auth")
        for token, status in (
            (provider.token("ec"), 200),
            (FakeAuth.token("u1", "rider"), 200),
            (provider.token(aud="other"), 401),
            (provider.token(iss="https://elsewhere.test"), 401),
        ):
            answer = await client.get("/guarded", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status, answer.text
        check_problem(await client.get("/guarded", headers={"Authorization": f"Bearer {provider.token(roles=[])}"}), 403)


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
async def test_each_algorithm_is_verified(provider: Provider, kid: str) -> None:
    found = await verifier(provider.settings).verify(provider.token(kid))
    assert found == Identity(
        "u1", "rider", "", "", found.expires, kid, ("rider", "editor"), ("rides:read", "rides:write"), provider.url
    )
    only = {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}
    others = tuple(name for other, name in only.items() if other != kid)
    with pytest.raises(Unauthenticated):
        await verifier(msgspec.structs.replace(provider.settings, algorithms=others)).verify(provider.token(kid))


@pytest.mark.parametrize(
    ("settings", "claims", "expected"),
    [
        ({"role_claim": "realm_access.roles"}, {"realm_access": {"roles": ["a", "b"]}}, ("u1", ("a", "b"), ("rides:read", "rides:write"))),
        ({"role_claim": "https://x.test/role"}, {"https://x.test/role": "admin"}, ("u1", ("admin",), ("rides:read", "rides:write"))),
        ({"scope_claim": "scp"}, {"scp": ["x", "y"]}, ("u1", ("rider", "editor"), ("x", "y"))),
        ({"subject_claim": "email"}, {"email": "a@b.test"}, ("a@b.test", ("rider", "editor"), ("rides:read", "rides:write"))),
        ({}, {"roles": None, "scope": None}, ("u1", (), ())),
    ],
    ids=["nested", "a URL", "a list of scopes", "subject", "none"],
)  # fmt: skip
async def test_claims_are_found_where_the_settings_say(
    provider: Provider, settings: dict[str, Any], claims: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    found = await verifier(msgspec.structs.replace(provider.settings, **settings)).verify(provider.token(**claims))
    assert (found.subject, found.roles, found.scopes) == expected


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": -60}, {"iat": 600, "exp": 700}, {"exp": None}, {"iat": None}, {"exp": 10**6}, {"aud": None}, {"aud": ["x", "y"]}, {"sub": None}, {"sub": 7}, {"sub": ""},
        {"roles": 7}, {"roles": [1]}, {"roles": {"a": 1}}, {"scope": 3}, {"exp": "soon"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_token_with_other_claims_is_refused(provider: Provider, claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier(provider.settings).verify(provider.token(**claims))


async def test_a_token_never_says_where_its_key_is(provider: Provider) -> None:
    """Neither by a URL nor by a key in its header."""
    stranger = Provider()
    stranger.url = provider.url
    (jwk,) = (key for key in stranger.jwks() if key["kid"] == "ec")
    for header in ({"jku": f"{provider.url}/other"}, {"jwk": jwk}, {"kid": "unknown"}):
        with pytest.raises(Unauthenticated):
            await verifier(provider.settings).verify(stranger.token("ec", header=header))
    assert provider.requests == 3, "each asked only the configured URL"


async def test_keys_that_cannot_sign_are_left_out(provider: Provider) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    as_jwk: dict[str, Any] = jwt.get_algorithm_by_name("RS256").to_jwk(weak.public_key(), as_dict=True)
    encrypting = {**provider.jwks()[0], "kid": "encrypting", "use": "enc"}
    shared = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "shared", "alg": "HS256"}
    provider.more = [{**as_jwk, "kid": "weak"}, encrypting, shared, {"kid": "broken", "kty": "RSA"}, {"kty": "new"}, {}]
    made = verifier(provider.settings)
    assert (await made.verify(provider.token("ec"))).kid == "ec"
    for kid in ("weak", "encrypting", "shared", "broken"):
        with pytest.raises(Unauthenticated, match="unknown key"):
            await made.verify(provider.token("rsa", header={"kid": kid}))


async def test_keys_are_cached_and_asked_for_once(provider: Provider) -> None:
    clock = ManualClock()
    made = verifier(provider.settings, clock=clock)
    for kid in ("rsa", "ec", "ed"):
        await made.verify(provider.token(kid))
    assert provider.requests == 1
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await made.verify(provider.token(header={"kid": f"forged-{number}"}))
    assert provider.requests == 1, "forged tokens cost the provider nothing"
    provider.status = 500
    assert (await made.verify(provider.token("ec", jti="another"))).subject == "u1", "known keys stay valid"


async def test_a_key_that_is_withdrawn_is_no_longer_accepted(provider: Provider) -> None:
    made = verifier(provider.settings)
    token = provider.token("ec")
    await made.verify(token)
    provider.hidden = {"ec"}
    (ring,) = made.other_keys()
    await ring.learn()
    assert made.cached(token) is None
    with pytest.raises(Unauthenticated):
        await made.verify(token)
    assert (await made.verify(provider.token("rsa"))).subject == "u1"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", b"[" * 10_000, b" " * 300_000], ids=lambda b: str(b[:12])
)
async def test_a_provider_that_answers_something_else_counts_as_unreachable(provider: Provider, body: bytes) -> None:
    provider.body = body
    with pytest.raises(Unreachable):
        await verifier(provider.settings).verify(provider.token())


async def test_a_provider_that_cannot_be_trusted_counts_as_unreachable(provider: Provider) -> None:
    with pytest.raises(Unreachable):
        await verifier(msgspec.structs.replace(provider.settings, ca_file=None)).verify(provider.token())
    provider.status = 302
    with pytest.raises(Unreachable):
        await verifier(provider.settings).verify(provider.token())


async def test_the_metadata_names_the_keys(provider: Provider) -> None:
    settings = msgspec.structs.replace(provider.settings, jwks_url=None)
    assert (await verifier(settings).verify(provider.token())).subject == "u1"
    other = msgspec.structs.replace(settings, issuer=f"{provider.url}/")
    with pytest.raises(Unreachable):
        await verifier(other).verify(provider.token(iss=f"{provider.url}/"))


async def test_a_file_has_the_keys(provider: Provider, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(msgspec.json.encode({"keys": provider.jwks()}))
    made = verifier(IssuerSettings("somebody", AUDIENCE, jwks_file=str(path)))
    assert (await made.verify(provider.token(iss="somebody"))).issuer == "somebody"
    assert provider.requests == 0
    path.unlink()
    (ring,) = made.other_keys()
    with pytest.raises(Unreachable):
        await ring.learn()
    assert (await made.verify(provider.token("ec", iss="somebody"))).issuer == "somebody", "the known keys stay valid"
    path.write_text('{"keys": [')
    with pytest.raises(Unreachable):
        await ring.learn()


def test_issuers_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "callboard.toml"
    path.write_text('[[identity.issuers]]\nissuer = "https://id.test"\naudience = "a"\njwks_url = "https://id.test/keys"\n')
    expected = IssuerSettings("https://id.test", "a", jwks_url="https://id.test/keys")
    assert load(path).settings.identity.issuers == (expected,)

    def loaded(text: str) -> tuple[IssuerSettings, ...]:
        return load(path, {"CALLBOARD_IDENTITY__ISSUERS": text}).settings.identity.issuers

    given = '[{"issuer": "https://other.test", "audience": "b", "role_claim": "r"}]'
    assert loaded(given) == (IssuerSettings("https://other.test", "b", role_claim="r"),)
    with pytest.raises(SettingsError, match="audience"):
        loaded('[{"issuer": "https://other.test"}]')
    with pytest.raises(SettingsError, match="jwks_url"):
        loaded('[{"issuer": "x", "audience": "b", "jwks_url": "http://id.test/keys"}]')
    for url in ("https://u:HUSH@id.test/keys", "https://u:HUSH@id.test", "https://"):
        with pytest.raises(SettingsError, match="jwks_url") as refused:
            loaded(f'[{{"issuer": "x", "audience": "b", "jwks_url": "{url}"}}]')
        assert "HUSH" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((IssuerSettings("callboard", "a", jwks_url="https://x.test/keys"),), "is the name of another issuer"),
        ((IssuerSettings("https://x.test", "a"), IssuerSettings("https://x.test", "b")), "is the name of another issuer"),
        ((IssuerSettings("x", "a"),), "expected jwks_url or jwks_file"),
        ((IssuerSettings("http://localhost.evil.test/x", "a"),), "expected jwks_url or jwks_file"),
        ((IssuerSettings("http://localhost@evil.test", "a"),), "expected jwks_url or jwks_file"),
        ((IssuerSettings("x", "a", jwks_file="none.json"),), "none.json cannot be read"),
        ((IssuerSettings("x", "a", jwks_file="x", jwks_url="https://x.test"),), "both set"),
        ((IssuerSettings("https://x.test", "a", ca_file="none.pem"),), "none.pem cannot be used"),
    ],
)
def test_an_issuer_that_cannot_work_stops_the_start(given: tuple[IssuerSettings, ...], text: str) -> None:
    with pytest.raises(CallboardError, match=text) as caught:
        issuers(msgspec.structs.replace(RENTAL, identity=IdentitySettings(issuers=given)))
    assert "\n" not in str(caught.value)
