"""The stories of riders: each registers, tops up, rides, and repeats every request with its key until it is answered."""

import asyncio
import random
from typing import Any

import aiohttp

PASSWORD = "correct horse battery"
_SECONDS = 90.0
"""The seconds that a story may take."""


class Story:
    """One rider.

    Attributes:
        top_up: the answered top-up.
        ride: the answered ride, as it was at its end.
        taken: whether the scooter was taken, so that there is no ride.
        ended: whether the story has come to its end.
        wrong: an answer that nobody expects.
    """

    def __init__(self, number: int, scooter: str) -> None:
        self.number = number
        self.scooter = scooter
        self.user = ""
        self.top_up: dict[str, Any] | None = None
        self.ride: dict[str, Any] | None = None
        self.taken = False
        self.ended = False
        self.wrong = ""
        self._headers: dict[str, str] = {}

    async def run(self, client: aiohttp.ClientSession) -> None:
        """Run to the end of the story, or give up."""
        try:
            async with asyncio.timeout(_SECONDS):
                await self._run(client)
                self.ended = True
        except TimeoutError:
            return

    async def _run(self, client: aiohttp.ClientSession) -> None:
        email = f"rider-{self.number}@example.com"
        await self._ask(client, "/users", {"email": email, "password": PASSWORD, "name": "R"}, (201, 409))
        await self._log_in(client)
        _, user = await self._ask(client, "/users/me", None, (200,))
        self.user = user["id"]
        _, self.top_up = await self._ask(client, "/wallet/top-ups", {"amount_cents": 3000}, (201,))
        status, ride = await self._ask(client, "/rides", {"scooter_id": self.scooter}, (201, 409))
        if status == 409:
            self.taken = True
            return
        self.ride = ride
        _, self.ride = await self._ask(client, f"/rides/{ride['id']}/end", {}, (200,))

    async def _log_in(self, client: aiohttp.ClientSession) -> None:
        body = {"email": f"rider-{self.number}@example.com", "password": PASSWORD}
        _, tokens = await self._ask(client, "/sessions", body, (201,))
        self._headers = {"Authorization": f"Bearer {tokens['access_token']}"}

    async def _ask(self, client: aiohttp.ClientSession, path: str, body: Any, expected: tuple[int, ...]) -> tuple[int, Any]:
        while True:
            headers = {**self._headers, "Idempotency-Key": f"{path}-{self.number}"[:60]}
            try:
                sent = client.get(path, headers=headers) if body is None else client.post(path, json=body, headers=headers)
                async with sent as answer:
                    status, found = answer.status, await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError):
                status, found = 599, None
            if status in expected:
                return status, found
            if status == 401 and path != "/sessions":
                await self._log_in(client)  # the clock of auth was ahead when it made the token
            elif status < 500 and status not in (401, 429) and not (status == 409 and found.get("retryable")):
                self.wrong = f"{path}: {status} {found}"
            await asyncio.sleep(0.3)


async def ride(url: str, scooters: list[str], seed: int, count: int, seconds: float, at_once: int) -> list[Story]:
    """Begin stories evenly over so many seconds, with so many at once. Return them when all have ended or given up."""
    rng = random.Random(seed)
    stories = [Story(number, rng.choice(scooters)) for number in range(count)]
    slots = asyncio.Semaphore(at_once)
    connector, timeout = aiohttp.TCPConnector(limit=at_once, force_close=True), aiohttp.ClientTimeout(15)

    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as client:

        async def run(story: Story) -> None:
            await asyncio.sleep(story.number * seconds / count)
            async with slots:
                await story.run(client)

        await asyncio.gather(*map(run, stories))
    return stories
