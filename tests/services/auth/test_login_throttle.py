"""Wrong passwords are throttled."""

import asyncio

from tests.system_under_test import PASSWORD, System


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
    answers = await asyncio.gather(*(system.client.post("/sessions", json=guess) for _ in range(30)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [401] * 10 + [429] * 20
