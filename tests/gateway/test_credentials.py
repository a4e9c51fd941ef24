"""How clients send their access tokens: the scheme, and a cookie."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from config.load import load
from config.values import SettingsError
from gateway.service import Gateway
from gateway.settings import GatewaySettings, IdentitySettings
from runtime import Node, NodeSettings
from runtime.testing import FakeAuth
from tests.gateway.environment import check_problem
from tests.gateway.probe import Probe
from transports.memory import MemoryTransport


def token() -> str:
    """Return a token of a rider. One that was made when the tests were collected would expire while they run."""
    return FakeAuth.token("u1", "rider")


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of a gateway with the identity settings of the test."""
    gateway = Gateway(GatewaySettings(port=0), None, request.param)
    async with Node([FakeAuth, Probe, lambda: gateway], MemoryTransport(), settings=NodeSettings(drain_timeout=1)) as node:
        await node.registry.wait_for("probe", "auth")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as made:
            yield made


with_scheme = pytest.mark.parametrize("client", [IdentitySettings(scheme="Token")], indirect=True)
with_cookie = pytest.mark.parametrize("client", [IdentitySettings(cookie="session-token")], indirect=True)


@with_scheme
async def test_another_scheme_takes_the_place_of_bearer(client: httpx.AsyncClient) -> None:
    for scheme in ("Token", "token", "TOKEN"):
        assert (await client.get("/guarded", headers={"Authorization": f"{scheme} {token()}"})).json() == "u1"
    for value in (f"Bearer {token()}", "Token", "Token x y", token()):
        refused = await client.get("/guarded", headers={"Authorization": value})
        check_problem(refused, 401, "unauthenticated")
        assert refused.headers["www-authenticate"] == "Token"
    assert (
        await client.get("/console/services", headers={"Authorization": f"Token {FakeAuth.token('o1', 'operator')}"})
    ).status_code == 200
    refused = await client.get("/console/services", headers={"Authorization": f"Bearer {FakeAuth.token('o1', 'operator')}"})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Token")


@with_scheme
async def test_the_document_describes_the_scheme(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert {name: (one["type"], one["in"], one["name"]) for name, one in schemes.items()} == {
        "token": ("apiKey", "header", "Authorization")
    }
    assert document["paths"]["/guarded"]["get"]["security"] == [{"token": []}]


@with_cookie
async def test_a_cookie_counts_if_there_is_no_authorization(client: httpx.AsyncClient) -> None:
    for cookie in (f"session-token={token()}", f'a=1; session-token="{token()}"; b=2'):
        assert (await client.get("/guarded", headers={"Cookie": cookie})).json() == "u1"
    for cookie in (f"other-session-token={token()}", "session-token=", "a=1", f"x=session-token={token()}"):
        check_problem(await client.get("/guarded", headers={"Cookie": cookie}), 401)
    mine = {"Cookie": f"session-token={token()}", "Authorization": f"Bearer {FakeAuth.token('u2', 'rider')}"}
    assert (await client.get("/guarded", headers=mine)).json() == "u2"
    assert (await client.get("/guarded")).status_code == 401, "the next request on the connection has no token"
    document = (await client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["cookie"] == {"type": "apiKey", "in": "cookie", "name": "session-token"}
    assert document["paths"]["/guarded"]["get"]["security"] == [{"bearer": []}, {"cookie": []}]


@with_cookie
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://shop.example", "Host": "shop.example"}, 200),
        ({"Authorization": "Bearer TOKEN", "Sec-Fetch-Site": "cross-site"}, 200),
    ],
)
async def test_another_site_changes_nothing_with_a_cookie(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.replace("TOKEN", token()) for name, value in headers.items()}
    answer = await client.put("/things/x", headers={**headers, "Cookie": f"session-token={token()}"})
    assert answer.status_code == status, answer.text
    if status == 403:
        check_problem(answer, 403, "cross-site")
        assert (await client.get("/guarded", headers={**headers, "Cookie": f"session-token={token()}"})).json() == "u1"


@with_cookie
@pytest.mark.parametrize("origin", [b"http://[x", b"http://\xff", b"x", b""])
async def test_an_origin_that_is_none_is_another_site(client: httpx.AsyncClient, origin: bytes) -> None:
    headers = [(b"Origin", origin), (b"Cookie", f"session-token={token()}".encode())]
    check_problem(await client.put("/things/x", headers=headers), 403, "cross-site")


@with_cookie
async def test_a_page_with_an_old_cookie_can_log_in_again(client: httpx.AsyncClient) -> None:
    """Where anybody may ask, a cookie that is not valid any more counts as none: a page cannot take it back."""
    expired = {"Cookie": f"session-token={FakeAuth.token('u1', 'rider', seconds=-1)}"}
    assert (await client.put("/things/x", headers=expired)).status_code == 200
    check_problem(await client.get("/guarded", headers=expired), 401)
    assert (await client.put("/things/x", headers={"Cookie": "session-token="})).status_code == 200
    check_problem(await client.put("/things/x", headers={"Authorization": "Bearer nonsense"}), 401)


def test_the_settings_say_how_tokens_are_sent() -> None:
    settings = load(None, {"CALLBOARD_IDENTITY__SCHEME": "Token", "CALLBOARD_IDENTITY__COOKIE": "session"}).settings.identity
    assert settings == IdentitySettings("Token", "session")
    for wrong in ("two words", "a:b"):
        with pytest.raises(SettingsError, match="CALLBOARD_IDENTITY__SCHEME"):
            load(None, {"CALLBOARD_IDENTITY__SCHEME": wrong})
