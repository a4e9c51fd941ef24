"""The end of a process whose threads or tasks do not end."""

from pathlib import Path

import pytest

from tests.config.test_signals import run_script

_SCRIPT = """
import asyncio, sys, threading, time
import anyio.to_thread
from config import ending
from config.cli.main import main
from config.cli.common import run_loop

gate, begun = threading.Event(), threading.Semaphore(0)

def blocks():
    begun.release(); gate.wait(600)

async def work(kinds):
    if "idle" in kinds:
        await asyncio.to_thread(int)
        await anyio.to_thread.run_sync(int)
    if "short" in kinds:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)
    if "to_thread" in kinds:
        asyncio.create_task(asyncio.to_thread(blocks))
    if "built-in" in kinds:
        asyncio.create_task(asyncio.to_thread(time.sleep, 600))
    if "anyio" in kinds:
        asyncio.create_task(anyio.to_thread.run_sync(blocks))
    if "own" in kinds:
        threading.Thread(target=blocks, name="mine").start()
    if "task" in kinds:
        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    pass
        asyncio.create_task(stubborn())
    for kind in {"to_thread", "anyio", "own"}.intersection(kinds.split()):
        while not begun.acquire(blocking=False):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)

ending._CANCELLED = 0.05
sys.modules["config.cli.main"].run_command = lambda: run_loop(work(sys.argv[1]), debug="debug" in sys.argv, patience=float(sys.argv[2]))
main()
print("ended")
"""


@pytest.mark.parametrize(
    ("kinds", "loop", "patience", "named"),
    [
        ("idle short", "uvloop", "60", []),
        (
            "to_thread built-in anyio task", "uvloop", "0.1",
            [
                "work.<locals>.stubborn (script.py:31) in a task",
                "blocks (script.py:11) in the thread uvloop_0",
                "time.sleep in the thread uvloop_1",
                "blocks (script.py:11) in the thread AnyIO worker thread",
            ],
        ),
        ("own", "debug", "0", ["blocks (script.py:11) in the thread mine"]),
    ],
)  # fmt: skip
def test_threads_and_tasks_that_do_not_end_are_named_and_left_behind(
    tmp_path: Path, kinds: str, loop: str, patience: str, named: list[str]
) -> None:
    status, printed = run_script(tmp_path, _SCRIPT, kinds, patience, loop)
    assert status == 0, printed
    _, _, listed = printed.partition("the process ends although this has not ended: ")
    assert sorted(listed.strip().split(", ")) == sorted(named or [""])
    assert (printed == "ended\n") is (not named)
