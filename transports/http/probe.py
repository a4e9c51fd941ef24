"""Looking at peers from outside, for whoever looks for a fault: what answers at each address, and how its clock goes."""

import asyncio
from email.utils import parsedate_to_datetime

import msgspec

from runtime import Clock
from runtime.network import TransportError
from transports.http import fields
from transports.http.assertions import Signer
from transports.http.client import Answer, Client
from transports.http.presence import places_of
from transports.http.settings import HttpSettings
from transports.http.transport import urls
from transports.resolver import Resolver


class Probed(msgspec.Struct, frozen=True):
    """What was found at one address, or where there should be one."""

    place: str
    node: str = ""
    """Empty where nobody has the service."""
    seconds_ahead: float = 0.0
    """How much its clock is ahead of ours; known to a second."""
    error: str = ""


async def probe(settings: HttpSettings, service: str, clock: Clock, seconds: float) -> list[Probed]:
    """Asks every address of a service whether it is there.

    Raises:
        StartError: the keys or the certificates cannot be used.
    """
    signer = Signer(settings.key or "", clock)
    client = Client(settings)
    found: list[Probed] = []
    try:
        for url in urls(settings.peers).get(service, ()):
            try:
                async with asyncio.timeout(seconds):
                    places = await places_of(url, Resolver())
            except (OSError, UnicodeError, TimeoutError) as error:
                found.append(
                    Probed(
                        url.authority, error=f"the name has no address ({str(error) or f'nobody answers within {seconds:g} s'})"
                    )
                )
                continue
            for place in sorted(places, key=str):
                headers = {fields.ASSERTION: signer.assertion(signer.names[0], service)}
                try:
                    async with asyncio.timeout(seconds):
                        answer = await client.get(place, f"/{service}/presence", headers)
                except TransportError as error:
                    found.append(Probed(str(place), error=str(error)))
                except TimeoutError:
                    found.append(Probed(str(place), error=f"no answer within {seconds:g} s"))
                else:
                    found.append(_read(str(place), answer, clock))
    finally:
        await client.close()
    return found


def _read(place: str, answer: Answer, clock: Clock) -> Probed:
    ahead = 0.0
    try:
        ahead = parsedate_to_datetime(answer.fields.get("date", "")).timestamp() + 0.5 - clock.timestamp()
    except ValueError:
        pass
    node = answer.fields.get(fields.NODE, "")
    if answer.status == 200:
        return Probed(place, node, ahead)
    if answer.status == 404 and node:
        return Probed(place, "", ahead, f"{node} is there, and has nothing of it yet")
    detail = answer.body[:300].decode(errors="replace")
    return Probed(place, "", ahead, f"it answers {answer.status}: {detail}")
