"""The console in a real browser: each view, in both themes and on a narrow screen."""

import json
import os
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from services.wallet.service import Wallet
from tests.browser import page
from tests.gateway.test_console import LETTER
from tests.services.test_rides import add_scooter, start, top_up
from tests.system.process import Callboard
from tests.system.test_up import pids
from tests.system_under_test import PASSWORD, System, callboard_up, open_system, settings

VIEWS = ("Map", "Instances", "Messages", "Traces", "Logs", "Streams", "Requests", "Settings")
WAIT = 20_000
"""Milliseconds for what takes a tick of the console or two."""


@asynccontextmanager
async def live(url: str, path: str = "/", **options: Any) -> AsyncGenerator[Page, None]:
    """Open the console of a development system, and wait until it is live."""
    async with page(url, **options) as opened:
        await opened.goto(path)
        await expect(opened.locator("#status")).to_have_text("live", timeout=WAIT)
        yield opened


async def show(opened: Page, view: str) -> None:
    await opened.get_by_role("link", name=view, exact=True).click()
    await expect(opened.get_by_role("heading", name=view, exact=True, level=2)).to_be_visible()


async def check_accessibility(opened: Page, what: str) -> None:
    found: Any = await Axe().run(opened, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    violations = [
        f"{what}: {one['id']}: {one['help']}: {[node['target'] for node in one['nodes'][:3]]}"
        for one in found.response["violations"]
    ]
    assert violations == []


async def rent(url: str, times: int = 1) -> None:
    """Rent a scooter of a development system, and end the ride."""
    async with httpx.AsyncClient(base_url=url, timeout=20, verify=False) as client:
        login = {"email": "rider@example.com", "password": "a dev password"}
        rider = {"Authorization": f"Bearer {(await client.post('/sessions', json=login)).json()['access_token']}"}
        assert (await client.post("/wallet/top-ups", json={"amount_cents": 5000}, headers=rider)).status_code == 201
        for _ in range(times):
            scooters = await client.get("/scooters?lat=52.52&lon=13.405&limit=1&radius_m=5000", headers=rider)
            ride = await client.post("/rides", json={"scooter_id": scooters.json()["items"][0]["id"]}, headers=rider)
            assert ride.status_code == 201, ride.text
            assert (await client.post(f"/rides/{ride.json()['id']}/end", headers=rider)).status_code == 200


@asynccontextmanager
async def dev(folder: Path) -> AsyncGenerator[Callboard, None]:
    async with Callboard(folder, "dev", "--no-reload") as running:
        await running.says("Stop with Ctrl-C")
        assert f"Console    {running.url}/console" in running.output
        yield running


async def test_a_developer_sees_a_ride_flow_and_finds_it_in_messages_traces_and_logs(tmp_path: Path) -> None:
    async with dev(tmp_path) as running, live(running.url) as opened:
        assert opened.url == f"{running.url}/console", "/ leads there"
        await expect(opened.locator("[data-node=rides]")).to_be_visible(timeout=WAIT)
        await expect(
            opened.locator("text=No messages in the last ten seconds").or_(opened.locator("tbody tr").first)
        ).to_be_visible()
        await show(opened, "Messages")
        await expect(opened.get_by_text("Listening to events and signals that match *.")).to_be_visible(timeout=WAIT)
        await show(opened, "Map")
        await rent(running.url)
        row = opened.get_by_role("row").filter(has_text="rides.RideStarted").filter(has_text="wallet")
        await expect(row).to_be_visible(timeout=WAIT)
        await expect(row).to_contain_text("event")
        await expect(opened.locator("path.edge.event:not(.still)").first).to_be_attached()
        await expect(opened.locator("[data-node=rides] text").nth(1)).to_have_text(re.compile(r"0\.\d/s"))

        await show(opened, "Messages")
        await opened.get_by_label("Names").fill("rides.*")
        await opened.get_by_role("button", name="Listen").click()
        await expect(opened.get_by_text("match rides.*.")).to_be_visible(timeout=WAIT)
        await rent(running.url)
        message = opened.get_by_role("row").filter(has_text="rides.RideEnded").first
        await expect(message).to_contain_text('"cents":', timeout=WAIT)
        await opened.get_by_label("Text").fill("RideStarted")
        await expect(message).to_be_hidden()
        numbers = '{"id":9007199254740993,"parts":[1,2.5,-12345678901234567890],"none":null}'
        read = "async (text) => JSON.stringify((await import('/console/assets/session.js')).parsed(text))"
        assert await opened.evaluate(read, numbers) == numbers, "no digit is lost"

        await show(opened, "Traces")
        await opened.get_by_label("Text, request, or trace").fill("POST /rides")
        link = opened.get_by_role("link", name="POST /rides", exact=True).first
        await link.click()
        await expect(opened.get_by_role("listitem").filter(has_text="wallet.Hold").first).to_be_visible(timeout=WAIT)
        assert await opened.locator(".waterfall .event").count() >= 3
        log = opened.get_by_role("row").filter(has_text="POST /rides 201")
        await expect(log).to_be_visible()
        await log.get_by_role("link").first.click()
        await expect(opened.get_by_role("heading", name="Logs")).to_be_visible()
        await expect(opened.get_by_text("1 records, the newest first")).to_be_visible()


async def test_a_request_is_made_with_a_form_as_a_chosen_user(tmp_path: Path) -> None:
    async with dev(tmp_path) as running, live(running.url, "/console#/requests") as opened:
        await opened.get_by_role("link", name="wallet.TopUp", exact=True).click()
        await opened.get_by_label(re.compile("amount_cents")).fill("700")
        await opened.get_by_label("As").select_option("rider@example.com")
        await opened.get_by_role("button", name="Send").click()
        await expect(opened.get_by_text("Answered with 200")).to_be_visible(timeout=WAIT)
        assert "700" in await opened.locator("pre").inner_text()
        amount = opened.get_by_label(re.compile("amount_cents"))
        await amount.fill("many")
        await opened.get_by_role("button", name="Send").click()
        await expect(opened.get_by_text("amount_cents: expected a number, got many")).to_be_visible()
        await amount.fill("9007199254740993")
        await opened.get_by_role("button", name="Send").click()
        await expect(opened.get_by_text("Answered with 422")).to_be_visible(timeout=WAIT)
        await opened.locator("[role=status] a").click()
        await expect(opened.get_by_role("listitem").filter(has_text="wallet.TopUp").first).to_be_visible(timeout=WAIT)
        await opened.go_back()
        await opened.get_by_role("link", name="rides.StartRide", exact=True).click()
        await opened.get_by_label(re.compile("scooter_id")).fill("nothing")
        await opened.get_by_role("button", name="Send").click()
        await expect(opened.get_by_text("Answered with 404")).to_be_visible(timeout=WAIT)
        problem = json.loads(await opened.locator("pre").inner_text())
        assert problem["status"] == 404
        await opened.get_by_role("link", name="auth.ChangePassword", exact=True).click()
        await expect(opened.get_by_label(re.compile("^old"))).to_have_attribute("type", "password")


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("dark", 1280, marks=pytest.mark.long),
        pytest.param("light", 390, marks=pytest.mark.long),
    ],
)
async def test_every_view_is_accessible_in_both_themes_and_on_a_narrow_screen(tmp_path: Path, scheme: str, width: int) -> None:
    viewport = {"width": width, "height": 844}
    async with dev(tmp_path) as running, live(running.url, color_scheme=scheme, viewport=viewport) as opened:
        await rent(running.url, 3)
        await expect(opened.get_by_role("row").filter(has_text="rides.RideEnded").first).to_be_visible(timeout=WAIT)
        background = await opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background))) < 60) is (scheme == "dark")
        for view in VIEWS:
            await show(opened, view)
            if view in ("Traces", "Logs"):
                await expect(opened.get_by_role("row").nth(1)).to_be_visible(timeout=WAIT)
            await check_accessibility(opened, view)
            wide = await opened.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{view} is {wide} pixels wider than the screen"
        await show(opened, "Traces")
        await opened.get_by_role("link", name="POST /rides", exact=True).first.click()
        await expect(opened.get_by_role("listitem").first).to_be_visible(timeout=WAIT)
        await check_accessibility(opened, "a trace")


async def test_it_is_used_with_the_keyboard_and_keeps_the_chosen_theme(tmp_path: Path) -> None:
    async with dev(tmp_path) as running, live(running.url) as opened:
        await opened.keyboard.press("Tab")
        await expect(opened.get_by_role("link", name="Skip to the content")).to_be_focused()
        await opened.keyboard.press("6")
        await expect(opened.get_by_role("heading", name="Streams", level=2)).to_be_visible()
        await opened.keyboard.press("8")
        await opened.get_by_label("Text").fill("password")
        await expect(opened.get_by_role("row").filter(has_text="dev.password")).to_contain_text("***")
        assert "a dev password" not in await opened.content()
        await opened.get_by_label("Text").fill("4")
        await expect(opened.get_by_role("heading", name="Settings", level=2)).to_be_visible()  # it was typed, and is no key
        for theme in ("light", "dark"):
            await opened.get_by_role("button", name="Theme").click()
            assert await opened.evaluate("getComputedStyle(document.documentElement).colorScheme") == theme
        await opened.reload()
        await expect(opened.get_by_role("button", name="Theme: dark")).to_be_visible()


async def test_what_is_focused_stays_focused_while_everything_is_updated(tmp_path: Path) -> None:
    async with dev(tmp_path) as running, live(running.url) as opened:
        await rent(running.url)
        await expect(opened.get_by_role("row").filter(has_text="rides.RideEnded").first).to_be_visible(timeout=WAIT)
        for view, label in (
            ("Map", "What flows"),
            ("Logs", "Log records"),
        ):
            await show(opened, view)
            region = opened.get_by_role("region", name=label)
            await expect(region).to_be_visible(timeout=WAIT)
            await region.focus()
            handle = await region.element_handle()
            await rent(running.url)
            await opened.wait_for_timeout(2500)  # the page is updated once a second
            assert handle is not None
            assert await handle.evaluate("element => element === document.activeElement"), view
        await show(opened, "Traces")
        link = opened.get_by_role("link", name="POST /rides", exact=True).last
        await link.focus()
        await rent(running.url, 2)
        await expect(opened.get_by_role("link", name="POST /rides", exact=True)).to_have_count(5, timeout=WAIT)
        assert await opened.evaluate("document.activeElement.textContent") == "POST /rides"


@pytest.mark.long
async def test_without_storage_and_with_an_odd_address_it_works(tmp_path: Path) -> None:
    async with dev(tmp_path) as running, page(running.url) as opened:
        await opened.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied') } })")
        await opened.goto("/console#/constructor")
        await expect(opened.locator("#status")).to_have_text("live", timeout=WAIT)
        await expect(opened.get_by_role("heading", name="Map", level=2)).to_be_visible()


@asynccontextmanager
async def operated(system: System) -> AsyncGenerator[Page, None]:
    """Open the console of a system as an operator, who logs in."""
    async with page(system.url) as opened:
        opened.on("dialog", lambda dialog: dialog.accept())
        await opened.goto("/console#/streams")
        yield opened


async def log_in(opened: Page, email: str) -> None:
    await opened.get_by_label("Email").fill(email)
    await opened.get_by_label("Password").fill(PASSWORD)
    await opened.get_by_role("button", name="Log in").click()


async def test_an_operator_retries_and_drops_dead_letters_and_resumes_a_stream(tmp_path: Path) -> None:
    chosen = settings(tmp_path, console="operators")
    async with open_system(chosen, separate_nodes=True) as system:
        database = system.service(Wallet).db
        good = '{"user_id":"late","role":"rider"}'
        for seq, id, body in ((1, "a", good), (2, "b", '{"user_id":7}')):
            await database.execute(LETTER, seq, id, body)
        await database.execute("UPDATE callboard_cursors SET stopped = 'for a test' WHERE publisher = 'auth'")
        async with page(system.url) as opened:
            opened.on("dialog", lambda dialog: dialog.accept())
            await opened.goto("/console#/streams")
            token = (await system.log_in("operator@example.com"))["access_token"]
            await opened.get_by_label("Or an access token").fill(token)
            await opened.get_by_role("button", name="Use it").click()
            await expect(opened.get_by_text("for a test")).to_be_visible(timeout=WAIT)
            await opened.get_by_role("button", name="Resume auth in wallet").click()
            await expect(opened.get_by_text("wallet applies the events of auth again.")).to_be_visible(timeout=WAIT)
            await expect(opened.get_by_text("for a test")).to_be_hidden(timeout=WAIT)
            await opened.get_by_role("button", name="Show 2").click()
            await opened.get_by_role("button", name="Show auth.UserRegistered 1").click()
            await expect(opened.get_by_role("dialog")).to_contain_text("late")
            await opened.get_by_role("button", name="Close").click()
            await opened.get_by_role("button", name="Retry auth.UserRegistered 1").click()
            await expect(opened.get_by_text("auth.UserRegistered 1 of auth was applied.")).to_be_visible(timeout=WAIT)
            assert await database.fetch_one("SELECT user_id FROM accounts WHERE user_id = 'late'") is not None
            await opened.get_by_role("button", name="Retry auth.UserRegistered 2").click()
            await expect(opened.get_by_text("auth.UserRegistered 2 has failed again")).to_be_visible(timeout=WAIT)
            await opened.get_by_role("button", name="Drop auth.UserRegistered 2").click()
            await expect(opened.get_by_text("There are no dead letters any more.")).to_be_visible(timeout=WAIT)
            assert await database.fetch("SELECT * FROM callboard_dead_letters") == []


async def test_an_operator_sees_a_ride_flow_between_nodes(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, console="operators"), separate_nodes=True) as system, operated(system) as opened:
        await log_in(opened, "operator@example.com")
        await expect(opened.locator("#status")).to_have_text("live", timeout=WAIT)
        await show(opened, "Map")
        await expect(opened.locator("[data-node=rides]")).to_be_visible(timeout=WAIT)
        rider = await system.bearer()
        await top_up(system, rider, 2000)
        assert (await start(system, rider, await add_scooter(system))).status_code == 201
        await expect(opened.get_by_role("row").filter(has_text="wallet.Hold")).to_be_visible(timeout=WAIT)
        await expect(opened.get_by_role("row").filter(has_text="rides.RideStarted").first).to_be_visible(timeout=WAIT)
        await show(opened, "Requests")
        await expect(opened.get_by_text("Forms are for development.")).to_be_visible()


async def test_a_node_that_is_killed_is_seen_to_go_and_its_successor_to_come(tmp_path: Path) -> None:
    async with callboard_up(tmp_path, CALLBOARD_GATEWAY__CONSOLE="operators") as system, operated(system) as opened:
        await log_in(opened, "operator@example.com")
        await expect(opened.locator("#status")).to_have_text("live", timeout=WAIT)
        await show(opened, "Instances")
        row = opened.get_by_role("row").filter(has=opened.get_by_role("cell", name="notices", exact=True))
        await expect(row).to_be_visible(timeout=WAIT)
        node = await row.get_by_role("cell").nth(2).inner_text()
        os.kill(pids(system)["notices"][0], signal.SIGKILL)
        await expect(opened.get_by_role("cell", name=node, exact=True)).to_have_count(0, timeout=WAIT)
        await expect(row).to_be_visible(timeout=WAIT)
        await expect(row).not_to_contain_text(node)


async def test_a_rider_is_not_let_in(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, console="operators")) as system, operated(system) as opened:
        await log_in(opened, "rider@example.com")
        await expect(opened.get_by_text("This user is no operator")).to_be_visible(timeout=WAIT)
        await log_in(opened, "operator@example.com")
        await expect(opened.get_by_role("heading", name="Streams", level=2)).to_be_visible(timeout=WAIT)


async def test_an_operator_whose_session_has_ended_logs_in_again(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, console="operators")) as system:
        errors: list[str] = []
        async with page(system.url, errors=errors) as opened:
            await opened.goto("/console#/instances")
            token = (await system.log_in("operator@example.com"))["access_token"]
            await opened.get_by_label("Or an access token").fill(token)
            await opened.get_by_role("button", name="Use it").click()
            await expect(opened.locator("#status")).to_have_text("live", timeout=WAIT)
            await system.client.delete("/sessions/current", headers={"Authorization": f"Bearer {token}"})
            await expect(opened.get_by_text("Your session has ended.")).to_be_visible(timeout=WAIT)
            await expect(opened.locator("#status")).to_have_text("not logged in")
            await log_in(opened, "operator@example.com")
            await expect(opened.locator("#status")).to_have_text("live", timeout=WAIT)
        assert all("401" in error for error in errors), "the browser logs the refused request for a ticket"
