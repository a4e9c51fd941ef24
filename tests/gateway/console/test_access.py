"""Who may use the console."""

from collections.abc import Sequence

import httpx

from gateway.console.access import ConsoleSource, Development
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node
from runtime.testing import FakeAuth
from tests.gateway.environment import GatewayEnvironment, check_problem
from tests.gateway.probe import Probe
from tests.gateway.test_tickets import ticket
from tests.sse import follow
from transports.memory import MemoryNetwork, MemoryTransport

PAGES = ("", "/assets/console.css", "/settings", "/requests", "/traces/x", "/events")


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {FakeAuth.token('u1', role)}"}


def signed(subject: str, roles: Sequence[str]) -> str:
    return FakeAuth.token(subject, *roles)


async def test_it_is_off_unless_it_is_turned_on() -> None:
    async with GatewayEnvironment("one-node-zero-copy") as env:
        for page in PAGES:
            check_problem(await env.client.get(f"/console{page}", headers=bearer("operator")), 404, "not-found")
        check_problem(await env.client.post("/console/session", json={}), 404, "not-found")
        answer = await env.client.get("/console/services", headers=bearer("operator"))
        assert answer.status_code == 200, "the command line asks for this"
        assert (await env.client.get("/")).headers["location"] == "/docs"


async def test_operators_alone_see_what_it_shows() -> None:
    async with GatewayEnvironment("one-node-zero-copy", console="operators") as env:
        page = await env.client.get("/console")
        assert page.status_code == 200, "the page itself says nothing, and lets an operator log in"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        for path in ("/settings", "/requests", "/traces/x", "/events"):
            check_problem(await env.client.get(f"/console{path}"), 401, "unauthenticated")
            check_problem(await env.client.get(f"/console{path}", headers=bearer("rider")), 403, "forbidden")
        assert (await env.client.get("/console/settings", headers=bearer("operator"))).json() == {"items": []}
        check_problem(await env.client.get("/console/traces/x", headers=bearer("operator")), 404, "not-found")
        check_problem(await env.client.post("/console/session", json={}), 403, "login-needed")
        made = await env.client.post("/console/requests/probe/probe.Look", json={}, headers=bearer("operator"))
        check_problem(made, 403, "login-needed")
        check_problem(
            await env.client.post("/console/signals/probe/Seen", json={}, headers=bearer("operator")), 403, "login-needed"
        )
        assert (await env.client.get("/")).headers["location"] == "/docs"


async def test_a_ticket_of_an_operator_opens_the_streams_once_and_one_of_a_rider_does_not() -> None:
    async with GatewayEnvironment("one-node-zero-copy", console="operators") as env:
        for path in ("/console/events", "/console/tail"):
            made = await ticket(env.client, bearer("operator"))
            async with follow(str(env.client.base_url), {}, path=f"{path}?ticket={made}") as events:
                assert events.response.status_code == 200
            check_problem(await env.client.get(f"{path}?ticket={made}"), 401, "unauthenticated")
            made = await ticket(env.client, bearer("rider"))
            check_problem(await env.client.get(f"{path}?ticket={made}"), 403, "forbidden")


JSON = {"content-type": "application/json"}
ELSEWHERE: tuple[dict[str, str], ...] = (
    JSON,
    {**JSON, "host": "evil.example"},
    {**JSON, "host": "127.0.0.1.evil.example"},
    {**JSON, "host": "localhost.evil.example:8000"},
    {**JSON, "origin": "http://evil.example"},
    {**JSON, "origin": "null"},
    {**JSON, "origin": "http://127.0.0.1:1"},
    {**JSON, "sec-fetch-site": "cross-site"},
    {**JSON, "sec-fetch-site": "same-site"},
    {**JSON, "x-forwarded-for": "203.0.113.7"},
    {**JSON, "forwarded": "for=203.0.113.7"},
    {**JSON, "x-real-ip": "203.0.113.7"},
    {**JSON, "x-forwarded-host": "callboard.example"},
    {**JSON, "via": "1.1 proxy"},
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {},
)
"""What the requests of other pages, and of what is behind a proxy, look like."""


async def test_in_development_its_own_page_gets_a_session_and_nobody_else_does() -> None:
    source = ConsoleSource(lambda: [{"setting": "a", "value": "***", "source": "default"}], Development(signed, {}, "secret"))
    gateway = Gateway(GatewaySettings(port=0), console=source)
    assert "secret" not in repr(source)
    async with (
        Node([FakeAuth, Probe, lambda: gateway], MemoryTransport(MemoryNetwork())),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as client,
    ):
        assert (await client.get("/")).headers["location"] == "/console"
        own_origin = {"origin": f"http://127.0.0.1:{gateway.port}"}
        for headers in ELSEWHERE:
            sent = headers if headers == JSON else own_origin | headers
            check_problem(await client.post("/console/session", content=b"{}", headers=sent), 403, "login-needed")
        own = {**JSON, "origin": f"http://127.0.0.1:{gateway.port}", "sec-fetch-site": "same-origin"}
        for content, status in ((b"[]", 422), (b"\xff", 422), (b'{"user":7}', 422), (b'{"more":1}', 422), (b'{"user":"x"}', 404)):
            assert (await client.post("/console/session", content=content, headers=own)).status_code == status
        for host in (f"127.0.0.1:{gateway.port}", f"localhost:{gateway.port}", "localhost", f"[::1]:{gateway.port}"):
            answer = await client.post(
                "/console/session", content=b"", headers={**JSON, "host": host, "origin": f"http://{host}"}
            )
            assert answer.status_code == 201
            assert answer.headers["cache-control"] == "no-store"
        token = answer.json()["token"]
        shown = await client.get("/console/settings", headers={"Authorization": f"Bearer {token}"})
        assert shown.json()["items"] == [{"setting": "a", "value": "***", "source": "default"}]


async def test_a_page_of_the_console_is_one_of_its_files() -> None:
    async with GatewayEnvironment("one-node-zero-copy", console="operators") as env:
        for name in ("nothing.js", "..%2Frequests.py", "%2e%2e/requests.py", "index.html", "console.css/x", ""):
            assert (await env.client.get(f"/console/assets/{name}")).status_code == 404
        script = await env.client.get("/console/assets/console.js")
        assert script.headers["content-type"].startswith("text/javascript")
