"""A handler that blocks the event loop is named in the log, with the duration and the line."""

import asyncio
import re
import threading
import time
from pathlib import Path

import pytest

from runtime import ANYONE, Context, Contract, Node, NodeSettings, Request, Service, every, handles
from runtime.node import watchdog
from runtime.testing import eventually
from transports.memory import MemoryTransport

links = Contract("links")


@links.message
class Shorten(Request[None]):
    """Blocks the event loop, in the way that `how` names."""

    how: str = "sleep"


block = time.sleep


def helper() -> None:
    block(0.15)  # the line of the helper


class Links(Service):
    contract = links
    blocks = ""

    @every(seconds=0.01)
    async def tick(self, ctx: Context) -> None:
        if self.blocks == "timer":
            Links.blocks = ""
            block(0.15)  # the line of the timer

    @handles(allow=ANYONE)
    async def shorten(self, message: Shorten, ctx: Context) -> None:
        match message.how:
            case "sleep":
                block(0.15)  # the line of the handler
            case "helper":
                helper()
            case "library":
                threading.Event().wait(0.15)  # the line of the library call
            case "task":
                await asyncio.create_task(self.spawned())
            case _:
                await asyncio.sleep(0.15)

    async def spawned(self) -> None:
        block(0.15)  # the line of the task


def line(comment: str) -> int:
    return next(number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(comment))


SETTINGS = NodeSettings(blocked_after=0.05)


async def reported(caplog: pytest.LogCaptureFixture, title: str, comment: str) -> None:
    """Wait until the log names a handler and the line with a comment, in exactly this form."""
    pattern = rf"{re.escape(title)} blocked the event loop for \d+\.\d s \(test_watchdog\.py:{line(comment)}\)"
    await eventually(
        lambda: any(re.fullmatch(pattern, record.getMessage()) for record in caplog.records), f"{pattern} in {caplog.text}"
    )


@pytest.mark.parametrize(
    ("how", "title", "comment"),
    [
        ("sleep", "Links.shorten", "# the line of the handler"),
        ("helper", "Links.shorten", "# the line of the helper"),
        ("library", "Links.shorten", "# the line of the library call"),
        ("task", "Links.spawned", "# the line of the task"),
    ],
)
async def test_a_handler_that_blocks_is_named(how: str, title: str, comment: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Node([Links], MemoryTransport(), settings=SETTINGS) as node:
        await node.client("test", (links,)).request(Shorten(how))
        await reported(caplog, title, comment)


async def test_a_timer_that_blocks_is_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Node([Links], MemoryTransport(), settings=SETTINGS):
        monkeypatch.setattr(Links, "blocks", "timer")
        await reported(caplog, "Links.tick", "# the line of the timer")


async def test_a_long_block_is_reported_while_it_lasts(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_STILL", 0.06)
    async with Node([Links], MemoryTransport(), settings=SETTINGS) as node:
        await node.client("test", (links,)).request(Shorten())
        await reported(caplog, "Links.shorten", "# the line of the handler")
    first, *_ = [record.getMessage() for record in caplog.records if "blocked" in record.getMessage()]
    assert re.fullmatch(r"Links\.shorten blocked the event loop for \d+\.\d s, and still does \(test_watchdog\.py:\d+\)", first)


async def test_handlers_that_wait_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    async with Node([Links], MemoryTransport(), settings=NodeSettings(blocked_after=5)) as node:
        ctx = node.client("test", (links,))
        await asyncio.gather(*(ctx.request(Shorten("wait")) for _ in range(10)))
    assert "blocked" not in caplog.text


async def test_the_watch_is_off_by_default_and_ends_with_the_node() -> None:
    def threads() -> int:
        return sum(thread.name == "callboard-watchdog" for thread in threading.enumerate())

    await eventually(lambda: threads() == 0, "the threads of other tests have ended")
    async with Node([Links], MemoryTransport()):
        assert threads() == 0
    async with Node([Links], MemoryTransport(), settings=SETTINGS):
        assert threads() == 1
    await eventually(lambda: threads() == 0, "the thread ends")
