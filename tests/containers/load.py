"""A steady load of a hundred requests per second, with a record of the answers."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp

RATE = 100
PATIENCE = 35.0


class Load:
    """Alternating safe requests (GET) and keyed ones (POST with an Idempotency-Key), none of which is retried.

    The client is aiohttp's, because hundreds of concurrent connections keep httpx's pool busy for seconds.
    """

    def __init__(self, client: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self.errors: list[str] = []
        """A description of each request that was not answered with 2xx."""
        self.answered: set[str] = set()
        """The keys of the requests that were answered with 2xx."""
        self.keys: set[str] = set()
        self.succeeded = 0
        self.slowest = 0.0
        self._client = client
        self._headers = headers
        self._numbers = itertools.count()

    def begin(self) -> None:
        """Reset the errors, the number of successes, and the slowest time."""
        self.errors.clear()
        self.succeeded, self.slowest = 0, 0.0

    @property
    def error_counts(self) -> Counter[str]:
        """How often each error occurred."""
        return Counter(self.errors)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Send requests until the block ends, then wait for the last answer."""
        tasks: set[asyncio.Task[None]] = set()

        async def keep_requesting() -> None:
            loop = asyncio.get_running_loop()
            started = loop.time()
            for number in itertools.count():
                tasks.add(task := asyncio.create_task(self._one(number)))
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(max(0.0, started + number / RATE - loop.time()))

        requesting = asyncio.create_task(keep_requesting())
        try:
            yield
        finally:
            requesting.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            self.errors += [repr(error) for error in done if error is not None]

    async def _one(self, number: int) -> None:
        key = f"key-{next(self._numbers)}" if number % 2 else None
        started = asyncio.get_running_loop().time()
        await self.request(key)
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - started)

    async def _send(self, key: str | None) -> str | None:
        """Send one request, and return what was wrong with the answer, or None."""
        if key is None:
            request = self._client.get("/wallet", headers=self._headers)
        else:
            self.keys.add(key)
            request = self._client.post(
                "/wallet/top-ups", json={"amount_cents": 1}, headers={**self._headers, "Idempotency-Key": key}
            )
        async with request as answer:
            if answer.ok:
                await answer.read()
                return None
            text = await answer.text()
            is_ours = answer.content_type == "application/problem+json"
            return f"{answer.status} {json.loads(text)['code'] if is_ours else text[:80]}"

    async def request(self, key: str | None) -> None:
        """Make one request, and record its outcome: a top-up with the key, or a read of the wallet without one.

        If the gateway closes an idle connection just as it is reused, there is no answer, and the request is sent once
        more, as clients do (RFC 9112, section 9.3.1).
        """
        try:
            try:
                error = await self._send(key)
            except aiohttp.ServerDisconnectedError:
                error = await self._send(key)
        except (aiohttp.ClientError, TimeoutError) as failure:
            error = type(failure).__name__
        if error is not None:
            self.errors.append(error)
            return
        self.succeeded += 1
        if key is not None:
            self.answered.add(key)
