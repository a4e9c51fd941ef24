"""Helpers that make notices for a user and wait for them."""

from runtime.testing import eventually
from services.rides.messages import RideAborted
from services.rides.service import Rides
from tests.system_under_test import System

Headers = dict[str, str]


async def user_id(system: System, headers: Headers) -> str:
    """Return the id of the user whose token is in the headers."""
    found: str = (await system.client.get("/users/me", headers=headers)).json()["id"]
    return found


async def abort_rides(system: System, user: str, count: int = 1, *, first: int = 1) -> None:
    """Publish `count` aborted rides of a user, each of which leads to a notice."""
    async with system.service(Rides).db.transaction() as tx:
        for number in range(first, first + count):
            await tx.publish(RideAborted(f"ride-{number}", user, "scooter", "scooter-lost"))


async def wait_for_notices(system: System, headers: Headers, count: int) -> None:
    """Wait until a user has that many notices."""

    async def all_written() -> bool:
        items = (await system.client.get("/notices", headers=headers)).json()["items"]
        return bool(items) and items[0]["number"] == count

    await eventually(all_written, f"{count} notices are written")
