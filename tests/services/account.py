"""The account of a rental: what must be true of the databases of wallet, fleet, rides and notices together."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def rows(folder: Path, service: str, sql: str) -> list[dict[str, Any]]:
    """What a look from outside into a service's database shows."""
    with closing(sqlite3.connect(folder / f"{service}.sqlite", timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql)]


def faults(folder: Path) -> list[str]:
    """What is wrong. Nothing may be, once all events are applied, what nobody confirmed has expired, and nothing is under way."""
    found: list[str] = []
    for row in rows(
        folder,
        "wallet",
        "SELECT user_id, balance_cents, (SELECT COALESCE(SUM(cents), 0) FROM entries e WHERE e.user_id = a.user_id) AS entries, "
        "held_cents, (SELECT COALESCE(SUM(cents), 0) FROM holds h WHERE h.user_id = a.user_id) AS holds FROM accounts a",
    ):
        sums = row["balance_cents"] == row["entries"] and row["held_cents"] == row["holds"]
        found += [] if sums else [f"the wallet does not sum: {row}"]
    rides = {row["id"]: row for row in rows(folder, "rides", "SELECT * FROM rides")}
    charges = rows(folder, "wallet", "SELECT ride_id, cents FROM entries WHERE kind = 'ride'")
    charged = {row["ride_id"]: -row["cents"] for row in charges}
    owed = {ride_id: ride["cents"] for ride_id, ride in rides.items() if ride["state"] == "ended"}
    if charged != owed or len(charges) != len(charged):
        found.append(f"charged {charges}, but the rides cost {owed}")
    active = {ride_id for ride_id, ride in rides.items() if ride["state"] == "active"}
    held = [row["ride_id"] for row in rows(folder, "wallet", "SELECT ride_id FROM holds")]
    if sorted(map(str, held)) != sorted(active):
        found.append(f"held for {held}, but under way are {active}")
    taken = {
        row["ride_id"]: row["id"] for row in rows(folder, "fleet", "SELECT * FROM scooters WHERE state IN ('reserved', 'riding')")
    }
    if taken != {ride_id: rides[ride_id]["scooter_id"] for ride_id in active}:
        found.append(f"taken are {taken}, but under way are {active}")
    told = sorted(
        (row["ride_id"], row["kind"]) for row in rows(folder, "notices", "SELECT * FROM notices WHERE ride_id IS NOT NULL")
    )
    due = [(ride_id, "ride-started") for ride_id in rides]
    due += [(ride_id, f"ride-{ride['state']}") for ride_id, ride in rides.items() if ride["state"] != "active"]
    if told != sorted(due):
        found.append(f"told {told}, but there was to tell {sorted(due)}")
    for service in ("wallet", "fleet", "rides", "notices"):
        letters = rows(folder, service, "SELECT type, error FROM callboard_dead_letters")
        found += [f"{service} has a dead letter: {letter}" for letter in letters]
    return found
