"""Riders who ask again and again, a hundred requests a second, and what they were told."""

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
    """Safe requests (GET) and keyed ones (POST with an Idempotency-Key) in turn; no answer is asked for again.

    aiohttp's client, because hundreds of connections at once keep httpx's pool busy for seconds.
    """

    def __init__(self, client: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self.wrong: list[str] = []
        """What was not answered with 2xx."""
        self.answered: set[str] = set()
        """The keys of what was."""
        self.keys: set[str] = set()
        self.well = 0
        self.slowest = 0.0
        self._client = client
        self._headers = headers
        self._numbers = itertools.count()

    def begin(self) -> None:
        """Forgets what went wrong before."""
        self.wrong.clear()
        self.well, self.slowest = 0, 0.0

    @property
    def said(self) -> Counter[str]:
        """How often each thing went wrong."""
        return Counter(self.wrong)

    @asynccontextmanager
    async def going(self) -> AsyncGenerator[None, None]:
        """Asks until the block ends, and waits for the last answer."""
        tasks: set[asyncio.Task[None]] = set()

        async def ask_on() -> None:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for number in itertools.count():
                tasks.add(task := asyncio.create_task(self._one(number)))
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(max(0.0, begun + number / RATE - loop.time()))

        asking = asyncio.create_task(ask_on())
        try:
            yield
        finally:
            asking.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            self.wrong += [repr(error) for error in done if error is not None]

    async def _one(self, number: int) -> None:
        key = f"key-{next(self._numbers)}" if number % 2 else None
        begun = asyncio.get_running_loop().time()
        await self.ask(key)
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - begun)

    async def _send(self, key: str | None) -> str | None:
        """Asks, and says what was wrong with the answer."""
        if key is None:
            asked = self._client.get("/wallet", headers=self._headers)
        else:
            self.keys.add(key)
            asked = self._client.post(
                "/wallet/top-ups", json={"amount_cents": 1}, headers={**self._headers, "Idempotency-Key": key}
            )
        async with asked as answer:
            if answer.ok:
                await answer.read()
                return None
            text = await answer.text()
            is_ours = answer.content_type == "application/problem+json"
            return f"{answer.status} {json.loads(text)['code'] if is_ours else text[:80]}"

    async def ask(self, key: str | None) -> None:
        """Makes one request: a top-up with the key, or a look at the wallet without one.

        A kept connection that the gateway ends while it is taken up again is no answer: then it is asked once more, as
        clients do (RFC 9112, section 9.3.1).
        """
        try:
            try:
                wrong = await self._send(key)
            except aiohttp.ServerDisconnectedError:
                wrong = await self._send(key)
        except (aiohttp.ClientError, TimeoutError) as error:
            wrong = type(error).__name__
        if wrong is not None:
            self.wrong.append(wrong)
            return
        self.well += 1
        if key is not None:
            self.answered.add(key)
