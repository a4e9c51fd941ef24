"""The account: what clients were answered, compared with what the databases hold."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.chaos.stories import Story
from tests.services import consistency

SETTLES = 30.0
"""The seconds within which the system settles after the last fault."""


class Account(NamedTuple):
    """What is wrong: answers that are lost, what happened twice, and what is stuck."""

    lost: tuple[str, ...]
    twice: tuple[str, ...]
    stuck: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.twice or self.stuck)


async def settled(data: Path, seconds: float) -> list[str]:
    """Wait until the databases are consistent. Return what is not after so many seconds."""
    left: list[str] = []
    try:
        async with asyncio.timeout(seconds):
            while left := await asyncio.to_thread(_unsettled, data):
                await asyncio.sleep(0.3)
    except TimeoutError:
        return left
    return []


def _unsettled(data: Path) -> list[str]:
    found = consistency.violations(data)
    for service in ("wallet", "fleet", "rides", "notices"):
        for row in consistency.query(data, service, "SELECT publisher, stopped FROM callboard_cursors WHERE stopped IS NOT NULL"):
            found.append(f"{service} has stopped: {row}")
        for row in consistency.query(data, service, "SELECT type, error FROM callboard_dead_letters"):
            found.append(f"{service} has a dead letter: {row}")
    return found


async def account(data: Path, stories: list[Story], seconds: float) -> Account:
    """Compare the databases with the answers."""
    stuck = [f"story {story.number} has not ended" for story in stories if not story.ended]
    stuck += [f"story {story.number}: {story.wrong}" for story in stories if story.wrong]
    stuck += await settled(data, seconds)
    entries = consistency.query(data, "wallet", "SELECT id, user_id, kind, cents, ride_id FROM entries")
    rides = {row["id"]: row for row in consistency.query(data, "rides", "SELECT id, user_id, state, cents FROM rides")}
    notices = consistency.query(data, "notices", "SELECT user_id, kind, cents FROM notices")
    top_ups = {row["id"]: row for row in entries if row["kind"] == "top-up"}
    charged = Counter(row["ride_id"] for row in entries if row["kind"] == "ride")
    told = Counter((row["user_id"], row["kind"]) for row in notices)
    topped = Counter(row["user_id"] for row in top_ups.values())
    ridden = Counter(row["user_id"] for row in rides.values() if row["state"] != "failed")
    lost: list[str] = []
    twice: list[str] = []
    for story in stories:
        if story.top_up is not None and story.top_up["id"] not in top_ups:
            lost.append(f"the top-up of story {story.number}")
        if topped[story.user] > 1:
            twice.append(f"{topped[story.user]} top-ups in story {story.number}")
        if ridden[story.user] > 1:
            twice.append(f"{ridden[story.user]} rides in story {story.number}")
        if story.ride is None or not story.ended:
            continue
        ride = rides.get(story.ride["id"])
        if ride is None or (ride["state"], ride["cents"]) != (story.ride["state"], story.ride["cents"]):
            lost.append(f"the ride of story {story.number}: {ride}, {story.ride}")
        if story.ride["state"] != "ended":
            continue
        if charged[story.ride["id"]] != 1:
            (twice if charged[story.ride["id"]] else lost).append(f"{charged[story.ride['id']]} charges of story {story.number}")
        for kind in ("ride-started", "ride-ended"):
            if told[story.user, kind] != 1:
                (twice if told[story.user, kind] else lost).append(
                    f"{told[story.user, kind]} notices {kind} of story {story.number}"
                )
    return Account(tuple(lost), tuple(twice), tuple(stuck))
