"""The checks of `callboard doctor` of a service's database, and of how far the service has applied the streams of others."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing

from config import compose
from config.databases import answer_here
from config.finding import Finding, fault, ok
from config.settings import Settings
from config.values import variable_name
from runtime import CallboardError
from runtime.durable.console import ShowStreams

TIMEOUT = 5.0
"""Seconds that each step of a check may take."""
_MIN_FREE_BYTES = 100 * 1024 * 1024


def check_file(settings: Settings, service: str) -> Finding:
    """Check the file of a service's database, and its folder."""
    path = compose.database_file(settings, service)
    what, folder = f"database of {service}", path.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return fault(
            what,
            f"{folder} cannot be written to by user {os.getuid()}: {error.strerror}: mount a volume there that this user owns, or choose another folder with {variable_name('database.folder')}",
        )
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        return fault(what, f"{free // 1_000_000} MB are free in {folder}: free some space")
    if not path.exists():
        return Finding(what, "warning", f"{path} does not exist yet: it is created when {service} starts")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=TIMEOUT)) as connection:
            (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        result = str(error)
    if result != "ok":
        return fault(what, f"{path} is damaged ({result}): stop {service} and restore a backup")
    return ok(what, f"{path}, {path.stat().st_size / 1e6:.1f} MB, intact; {free / 1e9:.1f} GB free")


async def check_server(settings: Settings, service: str) -> Finding:
    """Check the database of a service on PostgreSQL."""
    what = f"database of {service}"
    try:
        database = compose.databases(settings)(service)
        await database.open()
    except CallboardError as error:
        return fault(what, f"{error}: check {compose.database_variable(settings, service)} and the server")
    try:
        [row] = await database.fetch("SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby")
    except CallboardError as error:
        return fault(what, str(error))
    finally:
        await database.close()
    if row["standby"]:
        return fault(
            what, f"{database} is a standby, which takes no writes: name the primary, or all hosts with commas between them"
        )
    return ok(what, f"{database}, PostgreSQL {row['version']}")


async def check_streams(settings: Settings, service: str) -> Finding:
    """Check how far a service has applied the streams of others."""
    what = f"streams of {service}"
    try:
        report = await answer_here(settings, service, ShowStreams())
    except CallboardError as error:
        return Finding(what, "warning", f"{error}: it has not been started with this version yet")
    stopped = [one for one in report.subscriptions if one.state == "STOPPED"]
    letters = sum(one.dead_letters for one in report.subscriptions)
    lag = ", ".join(f"{one.lag:,} events of {one.publisher} wait" for one in report.subscriptions if one.lag)
    if stopped:
        named = "; ".join(f"that of {one.publisher}: {one.reason}" for one in stopped)
        return fault(what, f"stopped: {named}: `callboard streams resume {service} {stopped[0].publisher}` lets it continue")
    if letters:
        found = f"{letters:,} dead letters: `callboard dead-letters list {service}` shows them"
        return Finding(what, "warning", f"{found}; {lag}" if lag else found)
    return ok(what, lag or "all events that are known here are applied")
