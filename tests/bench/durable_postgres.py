"""Durable events on PostgreSQL, with a row on each side, and what bounds them: `python -m tests.bench.durable_postgres`.

The server is private and has its defaults, so each commit is on disk. The ceilings are the same statements, without Callboard, on
one session after the other: that of the publisher, and that of the subscriber, both at once.
"""

import argparse
import time
from functools import partial

import asyncpg

from config.cli.common import run_loop
from runtime.storage.postgres import PostgresDatabase
from tests.bench.durable import commit_to_commit
from tests.bench.figures import report
from tests.postgres import Postgres

_CEILING = """
CREATE TABLE numbers (number INTEGER);
CREATE TABLE head (one INTEGER PRIMARY KEY, seq BIGINT);
CREATE TABLE stream (seq BIGINT PRIMARY KEY, id TEXT, type TEXT, body TEXT, at TEXT, trace TEXT);
INSERT INTO head VALUES (1, 0);
"""
_PUBLISH = (
    "WITH h AS (UPDATE head SET seq = seq + 1 WHERE one = 1 RETURNING seq) "
    "INSERT INTO stream SELECT seq, $1, 'orders.Placed', $2, '2026-01-01T00:00:00.000000Z', '' FROM h"
)


async def _ceiling(url: str, count: int) -> tuple[float, float]:
    """Return the transactions per second of one session that publishes, and the CPU-free time of an empty commit, in ms."""
    session = await asyncpg.connect(url)
    try:
        await session.execute(_CEILING)
        start = time.perf_counter()
        for number in range(count):
            await session.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
            await session.execute("INSERT INTO numbers VALUES ($1)", number)
            await session.execute(_PUBLISH, f"{number:036}", f'{{"number":{number}}}')
            await session.execute("COMMIT")
        rate = count / (time.perf_counter() - start)
        committing = 0.0
        for number in range(count):
            await session.execute("BEGIN")
            await session.execute("INSERT INTO numbers VALUES ($1)", number)
            begun = time.perf_counter()
            await session.execute("COMMIT")
            committing += time.perf_counter() - begun
        return rate, 1000 * committing / count
    finally:
        await session.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.durable_postgres", description=__doc__)
    parser.add_argument("--count", type=int, default=2_000, help="the events of each measurement")
    count = parser.parse_args().count
    server = Postgres()
    try:
        server.start()
        rate, commit = run_loop(_ceiling(server.new_database(), count))
        report("postgres_one_session", rate, "per second")
        report("postgres_commit", commit, "ms")
        for callers in (1, 64):
            databases = partial(PostgresDatabase, server.new_database())
            published, applied = run_loop(commit_to_commit(databases, callers, count))
            report(f"durable_published_postgres_c{callers}", published, "per second")
            report(f"durable_postgres_c{callers}", applied, "per second")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
