"""Consistency checks across the databases of wallet, fleet, rides, and notices."""

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any


def query(folder: Path, service: str, sql: str) -> list[dict[str, Any]]:
    """Return the rows that a query finds in a service's database, read from outside the service.

    With a file `postgres.url` in the folder, the databases are schemas there.
    """
    url = folder / "postgres.url"
    if url.exists():
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url.read_text(encoding="utf-8")]
        text = f"SET search_path TO {service}; SELECT coalesce(json_agg(found), '[]') FROM ({sql}) AS found"
        rows: list[dict[str, Any]] = json.loads(subprocess.run([*command, "-c", text], check=True, capture_output=True).stdout)
        return rows
    with closing(sqlite3.connect(folder / f"{service}.sqlite", timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql)]


def violations(folder: Path) -> list[str]:
    """Return a description of each inconsistency between the services' databases.

    The list is empty once all events are applied, unconfirmed holds and reservations have expired, and no request is running.
    """
    found: list[str] = []
    for row in query(
        folder,
        "wallet",
        "SELECT user_id, balance_cents, (SELECT COALESCE(SUM(cents), 0) FROM entries e WHERE e.user_id = a.user_id) AS entries, "
        "held_cents, (SELECT COALESCE(SUM(cents), 0) FROM holds h WHERE h.user_id = a.user_id) AS holds FROM accounts a",
    ):
        sums = row["balance_cents"] == row["entries"] and row["held_cents"] == row["holds"]
        found += [] if sums else [f"wallet sums do not match: {row}"]
    rides = {row["id"]: row for row in query(folder, "rides", "SELECT * FROM rides")}
    charges = query(folder, "wallet", "SELECT ride_id, cents FROM entries WHERE kind = 'ride'")
    charged = {row["ride_id"]: -row["cents"] for row in charges}
    owed = {ride_id: ride["cents"] for ride_id, ride in rides.items() if ride["state"] == "ended"}
    if charged != owed or len(charges) != len(charged):
        found.append(f"wallet charged {charges}, but the rides cost {owed}")
    active = {ride_id for ride_id, ride in rides.items() if ride["state"] == "active"}
    held = [row["ride_id"] for row in query(folder, "wallet", "SELECT ride_id FROM holds")]
    if sorted(map(str, held)) != sorted(active):
        found.append(f"wallet holds money for {held}, but the active rides are {active}")
    taken = {
        row["ride_id"]: row["id"]
        for row in query(folder, "fleet", "SELECT * FROM scooters WHERE state IN ('reserved', 'riding')")
    }
    if taken != {ride_id: rides[ride_id]["scooter_id"] for ride_id in active}:
        found.append(f"scooters are taken by {taken}, but the active rides are {active}")
    sent = sorted(
        (row["ride_id"], row["kind"]) for row in query(folder, "notices", "SELECT * FROM notices WHERE ride_id IS NOT NULL")
    )
    due = [(ride_id, "ride-started") for ride_id in rides]
    due += [(ride_id, f"ride-{ride['state']}") for ride_id, ride in rides.items() if ride["state"] != "active"]
    if sent != sorted(due):
        found.append(f"notices written are {sent}, but expected {sorted(due)}")
    for service in ("wallet", "fleet", "rides", "notices"):
        letters = query(folder, service, "SELECT type, error FROM callboard_dead_letters")
        found += [f"{service} has a dead letter: {letter}" for letter in letters]
    return found
