"""A connection to SQLite, and its thread."""

import sqlite3
import threading
from functools import partial
from pathlib import Path

from runtime.storage.sqlite_connection import SqliteConnection


async def test_a_function_runs_although_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    connection = SqliteConnection(tmp_path / "a.sqlite")
    await connection.open("")
    gate, ran = threading.Event(), threading.Event()
    first = connection.run(lambda _: gate.wait())
    second = connection.run(lambda _: ran.set())
    second.cancel()
    assert not connection.idle
    gate.set()
    assert await first
    await connection.run(lambda _: None)
    assert ran.is_set()
    assert connection.idle
    await connection.close()


async def test_functions_run_in_order_in_another_thread(tmp_path: Path) -> None:
    connection = SqliteConnection(tmp_path / "a.sqlite")
    await connection.open("")
    seen: list[tuple[int, int]] = []

    def note(number: int, _: sqlite3.Connection) -> None:
        seen.append((number, threading.get_ident()))

    for outcome in [connection.run(partial(note, number)) for number in range(20)]:
        await outcome
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen} - {threading.get_ident()}) == 1
    await connection.close()
