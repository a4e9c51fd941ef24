"""Checks peers from outside, for diagnosis: what answers at each location of a service, and how far its clock is off."""

import asyncio
from email.utils import parsedate_to_datetime

import msgspec

from runtime import Clock
from runtime.network import TransportError
from transports.http import fields
from transports.http.assertions import Signer
from transports.http.client import Client
from transports.http.messages import Answer
from transports.http.presence import locations_of
from transports.http.settings import HttpSettings
from transports.http.transport import urls
from transports.resolver import Resolver


class Probed(msgspec.Struct, frozen=True):
    """What was found at one location.

    Attributes:
        location: The location, or the URL's host and port if the name has no address.
        node: The node there that has the service; empty if there is none.
        seconds_ahead: How many seconds its clock is ahead of this node's, to within a second.
        error: Why there is no node.
    """

    location: str
    node: str = ""
    seconds_ahead: float = 0.0
    error: str = ""


async def probe(settings: HttpSettings, service: str, clock: Clock, seconds: float) -> list[Probed]:
    """Ask every location of a service for its presence.

    Args:
        seconds: How long each lookup and each question may take.

    Raises:
        StartError: if the keys or the certificates cannot be used.
    """
    signer = Signer(settings.key or "", clock)
    client = Client(settings)
    found: list[Probed] = []
    try:
        for url in urls(settings.peers).get(service, ()):
            try:
                async with asyncio.timeout(seconds):
                    locations = await locations_of(url, Resolver())
            except (OSError, UnicodeError, TimeoutError) as error:
                found.append(
                    Probed(url.authority, error=f"the name has no address ({str(error) or f'no answer within {seconds:g} s'})")
                )
                continue
            for location in sorted(locations, key=str):
                headers = {fields.ASSERTION: signer.assertion(signer.names[0], service)}
                try:
                    async with asyncio.timeout(seconds):
                        answer = await client.get(location, f"/{service}/presence", headers)
                except TransportError as error:
                    found.append(Probed(str(location), error=str(error)))
                except TimeoutError:
                    found.append(Probed(str(location), error=f"no answer within {seconds:g} s"))
                else:
                    found.append(_read(str(location), answer, clock))
    finally:
        await client.close()
    return found


def _read(location: str, answer: Answer, clock: Clock) -> Probed:
    ahead = 0.0
    try:
        ahead = parsedate_to_datetime(answer.fields.get("date", "")).timestamp() + 0.5 - clock.timestamp()
    except ValueError:
        pass
    node = answer.fields.get(fields.NODE, "")
    if answer.status == 200:
        return Probed(location, node, ahead)
    if answer.status == 404 and node:
        return Probed(location, "", ahead, f"{node} answers, but does not have the service yet")
    detail = answer.body[:300].decode(errors="replace")
    return Probed(location, "", ahead, f"it answers {answer.status}: {detail}")
