"""Tickets for `/live`: they work once, for half a minute, at every gateway, and a real browser follows with them."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.packages import ROOT
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node
from runtime.testing import FakeAuth, eventually
from tests.browser import page
from tests.gateway.environment import GatewayEnvironment, check_problem
from tests.gateway.notices import abort_rides, user_id
from tests.sse import follow
from tests.system_under_test import PASSWORD, System, open_system, settings
from transports.memory import MemoryNetwork, MemoryTransport


async def ticket(client: httpx.AsyncClient, headers: dict[str, str]) -> str:
    answer = await client.post("/live/tickets", headers=headers)
    assert (answer.status_code, answer.json()["expires_in"]) == (201, 30)
    found: str = answer.json()["ticket"]
    return found


def bearer(user: str = "u1") -> dict[str, str]:
    return {"Authorization": f"Bearer {FakeAuth.token(user, 'rider')}"}


async def refused(client: httpx.AsyncClient, query: str) -> None:
    check_problem(await client.get(f"/live?{query}"), 401, "unauthenticated")


async def test_a_ticket_opens_one_stream_of_its_user(deployment: System) -> None:
    rider = await deployment.bearer()
    made = await ticket(deployment.client, rider)
    async with follow(deployment.url, {}, path=f"/live?ticket={made}") as events:
        await refused(deployment.client, f"ticket={made}")
        await abort_rides(deployment, await user_id(deployment, rider), 2)
        await events.wait_for(2)
        position = events.last_id
    await abort_rides(deployment, await user_id(deployment, rider), 1, first=3)
    again = await ticket(deployment.client, rider)
    async with follow(deployment.url, {}, path=f"/live?ticket={again}&last_event_id={position}") as events:
        await events.wait_for(1)
        assert events.numbers == [3], "the stream continues after the position in the URL"


async def test_a_stream_with_a_ticket_ends_when_its_session_is_revoked(deployment: System) -> None:
    rider = await deployment.bearer()
    async with follow(deployment.url, {}, path=f"/live?ticket={await ticket(deployment.client, rider)}") as events:
        assert (await deployment.client.delete("/sessions/current", headers=rider)).status_code == 204
        await eventually(lambda: events.ended, "the stream has ended", 5)
        assert events.kinds == ["end"]


async def test_what_is_no_ticket_is_refused(env: GatewayEnvironment) -> None:
    for text in ("", "x", "0" * 48, "ü", "a" * 10_000):
        await refused(env.client, f"ticket={text}")
    check_problem(await env.client.post("/live/tickets"), 401, "unauthenticated")
    check_problem(await env.client.post("/live/tickets", headers={"Authorization": "Bearer nonsense"}), 401, "unauthenticated")
    assert (await env.client.get("/live/tickets", headers=bearer())).status_code == 405


async def test_a_malformed_position_does_not_use_a_ticket_up(env: GatewayEnvironment) -> None:
    made = await ticket(env.client, bearer())
    check_problem(await env.client.get(f"/live?ticket={made}&last_event_id=x"), 400, "bad-last-event-id")
    async with follow(str(env.client.base_url), {}, path=f"/live?ticket={made}") as events:
        assert events.response.headers["x-request-id"]


async def test_a_ticket_is_not_in_the_log(env: GatewayEnvironment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    made = await ticket(env.client, bearer())
    await refused(env.client, f"ticket={made[::-1]}")
    ours = [str(vars(record)) + record.getMessage() for record in caplog.records if record.name.startswith("callboard")]
    assert any("POST /live/tickets 201" in text for text in ours)
    assert not any(made in text or made[::-1] in text for text in ours)


async def test_a_user_has_a_bounded_number_of_tickets(env: GatewayEnvironment) -> None:
    made = [await ticket(env.client, bearer()) for _ in range(33)]
    other = await ticket(env.client, bearer("u2"))
    await refused(env.client, f"ticket={made[0]}")
    for one in (made[1], made[-1], other):
        async with follow(str(env.client.base_url), {}, path=f"/live?ticket={one}"):
            pass


async def test_a_ticket_is_too_old_after_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tickets.SECONDS", -1)
    async with GatewayEnvironment("one-node-zero-copy") as env:
        answer = await env.client.post("/live/tickets", headers=bearer())
        await refused(env.client, f"ticket={answer.json()['ticket']}")


async def test_a_ticket_works_at_another_gateway() -> None:
    network = MemoryNetwork()
    gateways = [Gateway(GatewaySettings(port=0)) for _ in range(2)]
    async with AsyncExitStack() as stack:
        groups: list[list[Any]] = [[FakeAuth], [lambda: gateways[0]], [lambda: gateways[1]]]
        for group in groups:
            await stack.enter_async_context(Node(group, MemoryTransport(network)))
        one, other = (f"http://127.0.0.1:{gateway.port}" for gateway in gateways)
        async with httpx.AsyncClient(base_url=one, timeout=10, verify=False) as client:
            made = [await ticket(client, bearer()) for _ in range(2)]
        async with follow(other, {}, path=f"/live?ticket={made[0]}"):
            pass
        async with httpx.AsyncClient(base_url=other, timeout=10, verify=False) as client:
            await refused(client, f"ticket={made[0]}")
            await refused(client, f"ticket=0000000000000000{made[1][16:]}")


async def test_a_page_follows_in_a_real_browser_and_continues_after_a_restart(tmp_path: Path) -> None:
    html = (ROOT / "docs" / "examples" / "live" / "index.html").read_text(encoding="utf-8")
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(open_system(settings(tmp_path)))
        opened = await stack.enter_async_context(page(system.url))
        await opened.route("**/page", lambda route: route.fulfill(body=html, content_type="text/html"))
        await opened.goto("/page")
        await opened.fill("[name=email]", "rider@example.com")
        await opened.fill("[name=password]", PASSWORD)
        await opened.click("button")
        rider = await user_id(system, await system.bearer())
        gateway = system.service(Gateway)
        await eventually(lambda: gateway.subscribers.count == 1, "the page follows", 20)
        await abort_rides(system, rider, 2)
        await opened.wait_for_function("document.querySelectorAll('#news li').length === 2")
        for subscriber in gateway.subscribers._all():  # pyright: ignore[reportPrivateUsage]
            gateway.subscribers._end(subscriber, "a test ends it")  # pyright: ignore[reportPrivateUsage]
        await abort_rides(system, rider, 1, first=3)
        await opened.wait_for_function("document.querySelectorAll('#news li').length === 3")
        await eventually(lambda: gateway.subscribers.count == 1, "the page follows again", 20)
        assert "broken off" in await opened.inner_text("#news li:first-child")
