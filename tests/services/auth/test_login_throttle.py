"""Wrong passwords are throttled, by account and source."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime import Clock
from services.auth.login_throttle import LoginThrottle
from services.auth.messages import TooManyAttempts
from tests.system_under_test import PASSWORD, System, open_system, settings

OWNER, ATTACKER = "203.0.113.1", "198.51.100.7"


async def log_in(system: System, password: str, source: str = ATTACKER, email: str = "rider@example.com") -> httpx.Response:
    """Log in from an address outside: the tests are a trusted proxy."""
    return await system.client.post("/sessions", json={"email": email, "password": password}, headers={"X-Forwarded-For": source})


async def test_guessing_a_password_is_throttled(system: System) -> None:
    guess = {"email": "rider@example.com", "password": "wrong"}
    statuses = [(await system.client.post("/sessions", json=guess)).status_code for _ in range(10)]
    assert statuses == [401] * 10
    refused = await system.client.post("/sessions", json=guess)
    assert (refused.status_code, refused.json()["code"]) == (429, "too-many-attempts")
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert (await system.client.post("/sessions", json={"email": "admin@example.com", "password": PASSWORD})).status_code == 201


async def test_concurrent_wrong_passwords_are_throttled_too(system: System) -> None:
    guess = {"email": "rider@example.com", "password": "wrong"}
    answers = await asyncio.gather(*(system.client.post("/sessions", json=guess) for _ in range(15)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [401] * 10 + [429] * 5


@pytest.mark.parametrize("separate_nodes", [False, True])
async def test_nobody_can_lock_the_owner_of_an_account_out(tmp_path: Path, separate_nodes: bool) -> None:
    chosen = settings(tmp_path, trusted_proxies=("127.0.0.1",))
    async with open_system(chosen, separate_nodes=separate_nodes) as system:
        assert [(await log_in(system, "wrong")).status_code for _ in range(12)] == [401] * 10 + [429] * 2
        assert (await log_in(system, PASSWORD)).status_code == 429
        assert (await log_in(system, PASSWORD, OWNER)).status_code == 201, "the owner, at a new address"
        attackers = [f"2001:db8:{number}::1" for number in range(60)]
        statuses = [(await log_in(system, "wrong", source)).status_code for source in attackers]
        assert statuses == [401] * 39 + [429] * 21, "50 from all strangers together"
        assert (await log_in(system, PASSWORD, "203.0.113.2")).status_code == 429
        assert (await log_in(system, PASSWORD, OWNER)).status_code == 201, "the owner, where they have logged in before"
        assert (await log_in(system, PASSWORD, "203.0.113.2", "admin@example.com")).status_code == 201


async def test_a_stolen_token_cannot_guess_the_password_from_many_addresses(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, trusted_proxies=("127.0.0.1",))) as system:
        token = (await log_in(system, PASSWORD, OWNER)).json()["access_token"]

        async def change(old: str, source: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": source}
            return await system.client.post("/users/me/password", json={"old": old, "new": "another one"}, headers=headers)

        statuses = [(await change("wrong", f"198.51.100.{number}")).status_code for number in range(14)]
        assert statuses == [403] * 10 + [429] * 4
        assert (await change(PASSWORD, "198.51.100.99")).status_code == 429, "the right one would tell the thief too"
        assert (await log_in(system, PASSWORD, OWNER)).status_code == 201
        assert [(await change("wrong", OWNER)).status_code for _ in range(3)] == [403] * 3
        assert (await change(PASSWORD, OWNER)).status_code == 204, "the owner, where they have logged in before"


async def test_the_addresses_of_one_ipv6_network_are_one_source(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, trusted_proxies=("127.0.0.1",))) as system:
        statuses = [(await log_in(system, "wrong", f"2001:db8:7::{number:x}")).status_code for number in range(1, 13)]
        assert statuses == [401] * 10 + [429] * 2


class TestClock(Clock):
    """A clock that a test moves."""

    __test__ = False
    elapsed = 0.0

    def monotonic(self) -> float:
        return self.elapsed


def throttle() -> tuple[LoginThrottle, TestClock]:
    clock = TestClock()
    return LoginThrottle(clock), clock


def is_refused(throttle: LoginThrottle, account: str, source: str = "a", **more: Any) -> bool:
    try:
        throttle.record_attempt(account, source, **({"familiar": False} | more))
    except TooManyAttempts:
        return True
    return False


def test_logins_for_other_addresses_do_not_flush_a_limit() -> None:
    limit, _ = throttle()
    assert [is_refused(limit, "rider") for _ in range(11)] == [False] * 10 + [True]
    assert not any(is_refused(limit, f"other {number}") for number in range(12_000))
    assert is_refused(limit, "rider")


def test_a_refused_attempt_does_not_count_and_nothing_is_kept_longer_than_its_minute() -> None:
    limit, clock = throttle()
    for number in range(100):
        clock.elapsed = number * 0.1
        is_refused(limit, "rider")
        is_refused(limit, f"other {number}", "b")
    clock.elapsed = 60.05
    assert not is_refused(limit, "rider"), "the first attempt is a minute old, whatever was refused since"
    assert is_refused(limit, "rider")
    clock.elapsed = 130.0
    assert not is_refused(limit, "rider")
    assert len(limit._attempts) == 2


def test_a_right_password_resets_the_count_of_its_source_alone() -> None:
    limit, _ = throttle()
    for source in ("a", "b"):
        assert [is_refused(limit, "rider", source) for _ in range(11)] == [False] * 10 + [True]
    limit.reset("rider", "a")
    assert not is_refused(limit, "rider", "a")
    assert is_refused(limit, "rider", "b")
    assert [is_refused(limit, "rider", "c", familiar=True) for _ in range(11)] == [False] * 10 + [True]


def test_the_counts_are_bounded_without_forgetting_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.auth.login_throttle._MAX_COUNTS", 100)
    limit, clock = throttle()
    for _ in range(10):
        is_refused(limit, "rider")
    outcomes = [is_refused(limit, f"other {number}") for number in range(100)]
    assert outcomes == [False] * 49 + [True] * 51
    assert is_refused(limit, "rider")
    assert not is_refused(limit, "rider", "home", familiar=True), "a familiar source is never refused for want of room"
    clock.elapsed = 61
    assert not is_refused(limit, "new")
