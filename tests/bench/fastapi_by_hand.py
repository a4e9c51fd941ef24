"""A baseline for `callboard bench peers` and for the gateway, written as users would write it by hand.

A FastAPI application on uvicorn, called through the client library that the HTTP transport uses, without authentication,
presence, propagated deadlines or retries. Run it with `python -m tests.bench.fastapi_by_hand`.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel

from runtime.sockets import any_free_port
from tests.bench.figures import report


class Add(BaseModel):
    a: int


class Sum(BaseModel):
    s: int


app = FastAPI()


@app.post("/math/Add")
async def add(message: Add) -> Sum:
    return Sum(s=message.a + 1)


@app.get("/add/{a}")
async def add_by_path(a: int) -> Sum:
    return Sum(s=a + 1)


async def measure(port: int, callers: int, count: int) -> float:
    """Return the requests per second of `callers` concurrent callers that make `count` requests in total."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:

        async def call(times: int) -> None:
            for number in range(times):
                async with session.post("/math/Add", json={"a": number}) as response:
                    assert Sum.model_validate_json(await response.read()).s == number + 1

        await call(500)
        start = time.perf_counter()
        await asyncio.gather(*(call(count // callers) for _ in range(callers)))
        return count / (time.perf_counter() - start)


@asynccontextmanager
async def running() -> AsyncGenerator[int, None]:
    """Run the application in another process. Yield its port."""
    port = any_free_port()
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.fastapi_by_hand", "serve", str(port))
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield port
    finally:
        server.terminate()
        await server.wait()


async def main() -> None:
    async with running() as port:
        for name, callers, count in (("fastapi_c1", 1, 4_000), ("fastapi_c64", 64, 32_000)):
            report(name, await measure(port, callers, count), "per second")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
    else:
        uvloop.run(main())
