"""A line of the log for every refused login, token, and authorization."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import jwt
import pytest

from runtime.testing import FakeAuth
from tests.system_under_test import PASSWORD, System, open_system, settings

_LINE = re.compile(r'security\.refused( [a-z]+="(?:[^"\\]|\\.)*")+')


class Log:
    """The security lines that have come since the last call."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "callboard.security")  # as `log.level` may be
        self._caplog = caplog

    def take(self) -> list[dict[str, str]]:
        lines = [record.getMessage() for record in self._caplog.records if record.name == "callboard.security"]
        self._caplog.clear()
        for line in lines:
            assert _LINE.fullmatch(line), line
        return [{name: json.loads(value) for name, value in re.findall(r'([a-z]+)=("(?:[^"\\]|\\.)*")', line)} for line in lines]


@pytest.mark.parametrize("separate_nodes", [False, True])
async def test_every_refusal_is_one_line_at_the_gateway_and_at_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, separate_nodes: bool
) -> None:
    async with open_system(settings(tmp_path, trusted_proxies=("127.0.0.1",)), separate_nodes=separate_nodes) as system:
        tokens = await system.log_in()
        rider = {"Authorization": f"Bearer {tokens['access_token']}"}
        rider_id = jwt.decode(tokens["access_token"], options={"verify_signature": False})["sub"]
        forged = {"Authorization": f"Bearer {FakeAuth.token('u1', 'admin')}"}
        log = Log(caplog)

        async def check(
            status: int, what: str, services: set[str], method: str, path: str, **request: Any
        ) -> list[dict[str, str]]:
            answer = await system.client.request(method, path, **request)
            assert answer.status_code == status
            lines = log.take()
            assert {line["what"] for line in lines} == {what}, lines
            assert {line["service"] for line in lines} == services, lines
            assert all(line["reason"] for line in lines)
            assert all(what != "authorization" or line["user"] == rider_id for line in lines), lines
            return lines

        both = {"gateway", "auth"}
        for email, reason in (("rider@example.com", "wrong password"), ("a secret typed here", "unknown user")):
            body = {"email": email, "password": "a secret"}
            lines = await check(401, "login", both, "POST", "/sessions", json=body, headers={"X-Forwarded-For": "2001:db8::1"})
            assert {line["reason"] for line in lines if line["service"] == "auth"} == {reason}
            assert {line["client"] for line in lines} == {"2001:db8::/64"}
        await check(
            403, "login", both, "POST", "/users/me/password", json={"old": "a secret", "new": "another secret"}, headers=rider
        )
        answer = await system.client.post("/sessions/refresh", json={"refresh_token": "a secret"})
        assert (answer.status_code, {(line["service"], line["what"]) for line in log.take()}) == (
            401,
            {(name, "token") for name in both},
        )
        for headers in ({}, forged, {"Authorization": "Bearer a secret"}):
            await check(401, "token", {"gateway"}, "POST", "/rides", json={"scooter_id": "x"}, headers=headers)
        await check(401, "token", {"gateway", "wallet"}, "GET", "/wallet", headers=forged)
        await check(403, "authorization", {"gateway"}, "PATCH", "/users/x", json={}, headers=rider)
        for path in ("/live", "/console/tail", "/console/services"):
            (line,) = await check(401, "token", {"gateway"}, "GET", path)
            answer = await system.client.get(path)
            assert answer.headers["x-request-id"] == answer.json()["request_id"] == log.take()[0]["message"] != line["message"]
        await check(403, "authorization", {"gateway"}, "GET", "/console/services", headers=rider)
        statuses = [await attempt(system) for _ in range(11)]
        assert statuses[-1] == 429
        assert [line["reason"] for line in log.take() if line["service"] == "auth"][-1] == "too many attempts"
        assert (await system.client.get("/wallet", headers=rider)).status_code == 200
        assert log.take() == [], "what is granted is not logged"


async def attempt(system: System) -> int:
    return (await system.client.post("/sessions", json={"email": "admin@example.com", "password": "a secret"})).status_code


async def test_no_line_contains_a_secret_or_what_a_user_typed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_system(settings(tmp_path)) as system:
        await system.client.post("/sessions", json={"email": "typed-secret", "password": "typed-secret"})
        await system.client.get("/wallet", headers={"Authorization": "Bearer typed-secret"})
        await system.client.get("/wallet", headers={"Authorization": f"Bearer {FakeAuth.token('typed-secret', 'rider')}"})
        await system.client.post("/sessions/refresh", json={"refresh_token": "typed-secret"})
        for _ in range(12):
            await system.client.post("/sessions", json={"email": "rider@example.com", "password": "typed-secret"})
    security = [record.getMessage() for record in caplog.records if record.name == "callboard.security"]
    assert len(security) > 20
    assert not [line for line in security if "typed-secret" in line or PASSWORD in line or "eyJ" in line or "@" in line]
