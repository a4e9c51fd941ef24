"""Moleculer, the peer on Node.js, with the service and the scenarios of `callboard bench`.

`python -m tests.bench.moleculer SCENARIO` prints a JSON object per figure. Its packages are pinned in node/package.json and
installed into the user's cache folder.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from config.cli.bench.gateway import require_wrk, wrk
from config.cli.bench.processes import broker
from config.cli.common import run_loop
from runtime.sockets import any_free_port
from tests.bench.figures import report

_TIMEOUT = 300
"""Seconds that a role may take."""
_SOURCE = Path(__file__).parent / "node"


def missing() -> str | None:
    """Return the name of a program that is not installed, or None."""
    return next((program for program in ("node", "npm") if shutil.which(program) is None), None)


def _script() -> Path:
    """Return the script, in a folder with its packages."""
    files = ("package.json", "peer.js")
    digest = hashlib.sha256(b"".join((_SOURCE / name).read_bytes() for name in files)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callboard-bench" / digest
    if not (cache / "installed").exists():
        cache.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.copy(_SOURCE / name, cache)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=cache, check=True, stdout=sys.stderr)
        (cache / "installed").touch()
    return cache / "peer.js"


@asynccontextmanager
async def running(role: str, url: str, *arguments: str) -> AsyncGenerator[asyncio.StreamReader, None]:
    """Run a role that lasts, such as `serve` or `web`, until the block ends. Yield its output once it is ready."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("node", _script(), role, url, *arguments, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        assert line == b"ready\n", f"node peer.js {role} printed {line!r} instead of `ready`"
        yield process.stdout
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _run(role: str, url: str) -> None:
    process = await asyncio.create_subprocess_exec("node", _script(), role, url, stdin=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(_TIMEOUT):
            assert await process.wait() == 0, f"node peer.js {role} failed with status {process.returncode}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def gateway(url: str) -> AsyncGenerator[str, None]:
    """Run moleculer-web. Yield the URL of its route when it answers."""
    port = any_free_port()
    async with running("web", url, str(port)):
        route = f"http://127.0.0.1:{port}/add/1"
        for _ in range(100):
            status = await asyncio.create_subprocess_exec(
                "curl", "--silent", "--fail", "--output", os.devnull, route, stderr=asyncio.subprocess.DEVNULL
            )
            if await status.wait() == 0:
                break
            await asyncio.sleep(0.1)
        yield route


async def _web(name: str, url: str) -> None:
    async with gateway(url) as route:
        await wrk(route, 1, "none")
        report(name, await wrk(route, 5, "none"), "per second")


async def _measure(scenario: str) -> None:
    if scenario == "local":
        await _run("local", "-")
    elif scenario == "http":
        await _web("gateway", "-")
    else:
        async with broker() as settings, running("serve", settings.mqtt.url) as output:
            if scenario == "mqtt":
                await _run("call", settings.mqtt.url)
            elif scenario == "events":
                await _run("emit", settings.mqtt.url)
                async with asyncio.timeout(_TIMEOUT):
                    print((await output.readline()).decode().strip(), flush=True)
            else:
                await _web("gateway_mqtt", settings.mqtt.url)


def main() -> None:
    """Measure the scenario that is named on the command line."""
    (scenario,) = sys.argv[1:]
    if scenario.startswith("http"):
        require_wrk()
    run_loop(_measure(scenario))


if __name__ == "__main__":
    main()
