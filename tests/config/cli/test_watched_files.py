"""The files whose change restarts `dev`: whatever the process has loaded or read, and no file that it writes."""

from pathlib import Path

from tests.config.test_signals import run_script

_SCRIPT = """
import asyncio, os, pathlib, sqlite3, sys
from config.cli import reload, watched_files

watched_files.note_files()
for folder in ("package", "other"):
    os.makedirs(folder)
read, inside = pathlib.Path("other/prices.json"), pathlib.Path("package/words.txt")
module, settings, log = pathlib.Path("other/shared.py"), pathlib.Path("callboard.toml"), pathlib.Path("package/service.log")
module.write_text("WORD = 1")
os.system("echo 1 > other/prices.json; echo 1 > package/words.txt")
sys.path.append("other")
import shared
shared.__file__ = str(module.absolute())
watched_files._written.clear()  # another program writes them
read.read_text()

async def restarts(*paths):
    async with reload.watching([pathlib.Path("package").absolute()]) as changed:
        await asyncio.sleep(0.3)
        for path in paths:
            os.system(f"echo 2 >> {path}")
        done, _ = await asyncio.wait((changed,), timeout=10)
        return bool(done)

async def main():
    for path in (read, inside, module, settings, settings):
        print(path, await restarts(path))
    log.write_text("a line")
    sqlite3.connect("package/cache.db").execute("CREATE TABLE a (x INT)")
    async with reload.watching([pathlib.Path("package").absolute()]) as changed:
        await asyncio.sleep(0.3)
        with log.open("a") as file:
            file.write("another")
        sqlite3.connect("package/cache.db").execute("CREATE TABLE b (x INT)")
        os.system("echo 2 > package/.hidden; echo 2 > other/unread.txt")
        done, _ = await asyncio.wait((changed,), timeout=0.5)
        print("written", bool(done))

asyncio.run(main())
"""


def test_what_was_read_restarts_dev_and_what_it_writes_does_not(tmp_path: Path) -> None:
    status, printed = run_script(tmp_path, _SCRIPT)
    assert status == 0, printed
    assert printed.splitlines() == [
        "other/prices.json True",
        "package/words.txt True",
        "other/shared.py True",
        "callboard.toml True",
        "callboard.toml True",
        "written False",
    ]
