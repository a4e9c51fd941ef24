"""A forked child has no part in the signals of its parent, on asyncio's event loop and on uvloop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_script(folder: Path, code: str, *arguments: str) -> tuple[int, str]:
    """Run a Python script in a separate process, and return its exit status and output."""
    file = folder / "script.py"
    file.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, str(file), *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    return ended.returncode, ended.stdout


_FORKS = """
import asyncio, multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from config.signals import stop_signal

def forked(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(9)
    return pid

def sleep():
    time.sleep(60)

def say_and_sleep():
    open("begun", "w").close()
    time.sleep(60)

def has_own_handlers():
    assert signal.getsignal(signal.SIGUSR1) is own
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    os._exit(0)

def own(*_): ...

async def main():
    signal.signal(signal.SIGUSR1, own)
    stop = stop_signal()
    assert os.waitpid(forked(has_own_handlers), 0)[1] == 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        child = multiprocessing.get_context("fork").Process(target=sleep)
        child.start()
        os.kill(child.pid, number)
        await asyncio.to_thread(child.join)
        assert child.exitcode in (-number, 1 if number == signal.SIGINT else None), (number, child.exitcode)
        pid = await asyncio.to_thread(forked, sleep)
        os.kill(pid, number)
        assert os.waitpid(pid, 0)[1] in (number, 9 << 8), "a KeyboardInterrupt may have come before the exit"
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        pending = pool.submit(say_and_sleep)
        while not os.path.exists("begun"):
            await asyncio.sleep(0.01)
        for process in pool._processes.values():
            process.terminate()
        assert "terminated" in str(await asyncio.to_thread(pending.exception))
    program = await asyncio.create_subprocess_exec("sleep", "60")
    program.terminate()
    assert await program.wait() == -signal.SIGTERM
    await asyncio.sleep(0.05)
    assert not stop.is_set(), "the parent stops"
    os.kill(os.getpid(), signal.SIGHUP)
    await stop.wait()
    print("stopped")

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_signal_for_a_child_reaches_the_child_and_not_the_node(tmp_path: Path, loop: str) -> None:
    status, printed = run_script(tmp_path, _FORKS, loop)
    assert status == 0, printed
    assert printed.endswith("stopped\n")


_EXITS = """
import asyncio, sys
from config.cli.common import run_loop
from config.cli.status import NodeFailed

async def background():
    sys.exit(0)

async def main():
    task = asyncio.create_task(background())
    await asyncio.sleep(60)

for debug in (True, False):
    try:
        run_loop(main(), debug=debug)
    except NodeFailed as error:
        print(error)
"""


def test_a_task_that_nobody_awaits_does_not_end_the_process_as_if_it_had_been_stopped(tmp_path: Path) -> None:
    status, printed = run_script(tmp_path, _EXITS)
    assert status == 0, printed
    assert printed.count("script.py:7: SystemExit(0) in a task that no handler awaits has ended the node\n") == 2
