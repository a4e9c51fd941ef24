"""A soak: load for half an hour, with a deployment and its roll-back, and with the clock set back, on separate processes over MQTT.

    make soak MINUTES=30

A service is replaced by a newer version and again by the old one: the newer version has one more request and one more optional
field. In the middle the clock of all processes is set back by an hour; their monotonic clocks go on. A client makes 100 requests
a second, each for something that may be repeated, and repeats what is retryable. At the end this prints the requests, the errors
that the client saw although it retried, and the size of each database over time. It exits with status 1 unless there were no
errors and every database had its final size, with some allowance, after the first third.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.broker import Broker
from tests.set_clock import SET_CLOCK
from tests.system.process import Callboard

RATE = 100
"""Requests per second."""
KEYS = 1500
"""The idempotency keys that the client uses, in turn: after the first third of the time, all have been used."""
PATIENCE = 120.0
"""The seconds for which the client repeats a request."""
ALLOWANCE = 1.15, 4608 * 1024
"""How much a database may grow after the first third: a factor, and bytes. SQLite's write-ahead log has up to 4 MiB."""
PASSWORD = "correct horse battery staple 9"

_SERVICE = """
from runtime import Context, Contract, Request, Service, Struct, Transaction, handles, roles

tally = Contract("tally")


class Total(Struct):
    name: str
    value: int
{reply}

@tally.message
class Add(Request[Total]):
    name: str
    value: int
{field}

@tally.message
class Put(Request[Total]):
    name: str
    value: int


@tally.message
class Get(Request[Total]):
    name: str

{request}
class Tally(Service):
    contract = tally
    version = "{version}"

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INT NOT NULL)")
            await tx.execute("CREATE TABLE IF NOT EXISTS runs (id INT PRIMARY KEY, value INT NOT NULL)")

    @handles(http="POST /totals/{{name}}", allow=roles("rider"), once=True)
    async def add(self, message: Add, ctx: Context, tx: Transaction) -> Total:
        await tx.execute("INSERT INTO runs (id, value) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET value = runs.value + 1")
        await tx.execute(
            "INSERT INTO totals (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = totals.value + $2",
            message.name, message.value,
        )
        return Total(message.name, message.value)

    @handles(http="PUT /totals/{{name}}", allow=roles("rider"), idempotent=True)
    async def put(self, message: Put, ctx: Context, tx: Transaction) -> Total:
        await tx.execute(
            "INSERT INTO totals (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
            message.name, message.value,
        )
        return Total(message.name, message.value)

    @handles(http="GET /totals/{{name}}", allow=roles("rider"))
    async def get(self, message: Get, ctx: Context) -> Total:
        row = await self.db.fetch_one("SELECT value FROM totals WHERE name = $1", message.name)
        return Total(message.name, 0 if row is None else row["value"])
{handler}"""
_OLD = {"version": "1", "reply": "", "field": "", "request": "", "handler": ""}
_NEW = {
    "version": "2",
    "reply": "    note: str = \"\"\n",
    "field": "    note: str = \"\"\n",
    "request": '''
@tally.message
class Count(Request[int]):
    pass

''',
    "handler": '''
    @handles(http="GET /totals", allow=roles("rider"))
    async def count(self, message: Count, ctx: Context) -> int:
        return len(await self.db.fetch("SELECT name FROM totals"))
''',
}  # fmt: skip


class Client:
    """A client that retries, and what it has seen. It is aiohttp's, because httpx's pool searches all of its connections for each request."""

    def __init__(self, url: str) -> None:
        self._http = aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(40), connector=aiohttp.TCPConnector(limit=0))
        self.done = 0
        self.retried: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.new_version = False
        """Whether only the new version runs, so that the client may use what it alone has."""
        self._replies: dict[str, bytes] = {}
        self._headers: dict[str, str] = {}
        self._logging_in = asyncio.Lock()

    async def log_in(self) -> None:
        before = self._headers
        async with self._logging_in:
            if self._headers is not before:
                return  # another request has just done it
            status, answer = await self.ask("POST", "/sessions", {"email": "soak@example.com", "password": PASSWORD})
            if status == 201:
                self._headers = {"authorization": f"Bearer {msgspec.json.decode(answer)['access_token']}"}

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Make a request once, and return the status and the body of its answer. Raises `ClientError` or TimeoutError."""
        async with self._http.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.read()

    async def close(self) -> None:
        await self._http.close()

    async def make(self, number: int) -> None:
        name = f"name-{random.randrange(50)}"
        match number % 10:
            case 0 | 1 | 2 | 3:
                key = f"key-{number // 10 * 4 % KEYS + number % 10}"
                await self._retry("POST", f"/totals/{key}", {"value": 5}, key)
            case 4 | 5 | 6:
                await self._retry("PUT", f"/totals/{name}", {"value": number % 100})
            case 9 if self.new_version:
                await self._retry("GET", "/totals")
            case _:
                await self._retry("GET", f"/totals/{name}")

    async def _retry(self, method: str, path: str, body: Any = None, key: str | None = None) -> None:
        """Make a request until it has an answer that is final."""
        give_up, pause = time.monotonic() + PATIENCE, 0.1
        while True:
            headers = self._headers | ({} if key is None else {"idempotency-key": key})
            status, answer, final = 0, b"", False
            try:
                status, answer = await self.ask(method, path, body, headers)
                problem = None if status < 400 else msgspec.json.decode(answer)
                why = "" if problem is None else f"{status} {problem['code']}"
                final = problem is None or not (problem["retryable"] or status in (401, 408))
            except (aiohttp.ClientError, TimeoutError) as error:
                why = type(error).__name__
            if final or time.monotonic() > give_up:
                self.done += 1
                if why:
                    self.errors[f"{method} {path.partition('-')[0]}: {why}"] += 1
                elif key is not None and self._replies.setdefault(key, answer) != answer:
                    self.errors["another reply to the same key"] += 1
                return
            self.retried[why] += 1
            if status == 401:
                await self.log_in()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, 2)


class Soak:
    """The system under load, and the client."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.clock = folder / "clock"
        self.sizes: dict[str, list[tuple[float, int]]] = {}
        self._stack = AsyncExitStack()
        self._tally: Callboard | None = None
        for name, version in (("old", _OLD), ("new", _NEW)):
            package = folder / name / "tally"
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            (folder / name / "sitecustomize.py").write_text(SET_CLOCK.format(file=str(self.clock)), encoding="utf-8")
            (package / "service.py").write_text(_SERVICE.format(**version), encoding="utf-8")
        self._set_clock(0)

    def _set_clock(self, seconds: int) -> None:
        new = self.clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n", encoding="utf-8")
        new.replace(self.clock)

    async def _start(self, service: str, version: str = "old") -> Callboard:
        return await Callboard(self.folder / version, "run", service, **self._environment).__aenter__()

    async def deploy(self, version: str) -> None:
        """Replace the instance: its database is a file, so the old one stops before the new one starts."""
        if self._tally is not None:
            self._tally.process.terminate()
            assert await self._tally.process.wait() == 0, self._tally.output
        self._tally = await self._start("tally", version)
        print(f"{version} version started", flush=True)

    async def run(self) -> bool:
        async with self._stack, Broker(self.folder) as broker:
            gateway = Callboard(self.folder / "old", "run", "gateway")
            self._environment = {
                "CALLBOARD_TRANSPORT__KIND": "mqtt",
                "CALLBOARD_TRANSPORT__MQTT__URL": broker.url,
                "CALLBOARD_SERVICES": "tally.service:Tally",
                "CALLBOARD_DATABASE__FOLDER": str(self.folder / "data"),
                "CALLBOARD_GATEWAY__PORT": str(gateway.port),
                "CALLBOARD_GATEWAY__EXPECTS": "auth,tally",
            }
            processes = [await self._start("auth"), await self._start("gateway")]
            await self.deploy("old")
            client = Client(gateway.url)
            try:
                await self._until_ready(client)
                await self._load(client)
            finally:
                assert self._tally is not None
                for process in (self._tally, *processes):
                    if process.process.returncode is None:
                        process.process.terminate()
                        try:
                            await asyncio.wait_for(process.process.wait(), 30)
                        except TimeoutError:
                            process.process.kill()
                if client.errors or sys.exc_info()[0] is not None:
                    print("\n".join(process.output[-3000:] for process in (self._tally, *processes)), flush=True)
                await client.close()
            noticed = [process for process in processes if "the clock was set back by 3600" in process.output]
            print(f"processes that ran when the clock was set back, and have said so: {len(noticed)} of {len(processes)}")
            return self._report(client) and noticed == processes

    async def _until_ready(self, client: Client) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    if (await client.ask("GET", "/readyz"))[0] == 200:
                        break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        user = {"email": "soak@example.com", "password": PASSWORD, "name": "Soak"}
        assert (await client.ask("POST", "/users", user))[0] == 201
        await client.log_in()

    async def _load(self, client: Client) -> None:
        begun = time.monotonic()
        events = asyncio.create_task(self._happen(client))
        running: set[asyncio.Task[None]] = set()
        number = 0
        while (now := time.monotonic() - begun) < self.seconds:
            while number < now * RATE:
                task = asyncio.create_task(client.make(number))
                running.add(task)
                task.add_done_callback(running.discard)
                number += 1
            if int(now / self.seconds * 30) > len(next(iter(self.sizes.values()), [])) - 1:
                self._measure(now)
            await asyncio.sleep(0.01)
        await asyncio.gather(*running)
        self._measure(time.monotonic() - begun)
        await events

    async def _happen(self, client: Client) -> None:
        """Deploy, set the clock back, and roll back, while the load goes on."""
        await asyncio.sleep(self.seconds * 0.4)
        await self.deploy("new")
        while not await self._describes(client, "/totals"):
            await asyncio.sleep(0.5)
        client.new_version = True
        await asyncio.sleep(self.seconds * 0.1)
        self._set_clock(-3600)
        print("the clock is set back by an hour", flush=True)
        await asyncio.sleep(self.seconds * 0.15)
        client.new_version = False
        await asyncio.sleep(2)
        await self.deploy("old")

    @staticmethod
    async def _describes(client: Client, path: str) -> bool:
        try:
            return path in msgspec.json.decode((await client.ask("GET", "/openapi.json"))[1])["paths"]
        except aiohttp.ClientError:
            return False

    def _measure(self, now: float) -> None:
        for file in sorted((self.folder / "data").glob("*.sqlite")):
            log = file.with_name(f"{file.name}-wal")
            size = file.stat().st_size + (log.stat().st_size if log.exists() else 0)
            self.sizes.setdefault(file.stem, []).append((now, size))

    def _report(self, client: Client) -> bool:
        print(f"requests: {client.done}   repeated: {dict(client.retried)}")
        print(f"errors that the client saw: {client.errors.total()} {dict(client.errors)}")
        flat = True
        for database, sizes in self.sizes.items():
            settled = max(size for now, size in sizes if now <= self.seconds / 3 + 2)
            largest = max(size for _, size in sizes)
            good = largest <= settled * ALLOWANCE[0] + ALLOWANCE[1]
            flat = flat and good
            print(f"{database}: {'flat' if good else 'GROWS'}: {' '.join(f'{size >> 10}' for _, size in sizes)} KiB")
        return flat and not client.errors and client.done > 0


def main() -> None:
    minutes = float(os.environ.get("MINUTES", "30"))
    with tempfile.TemporaryDirectory() as folder:
        good = asyncio.run(Soak(Path(folder), minutes * 60).run())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
