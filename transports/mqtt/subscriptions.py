"""The subscriptions of a link, which it restores on every new connection."""

import asyncio
from typing import Any

import mqtt5

from runtime.network import TransportError
from transports.mqtt.acknowledgements import Acknowledgements
from transports.mqtt.broker import describe
from transports.mqtt.connection import Connection
from transports.mqtt.limits import Limits


class Subscriptions:
    """What a link subscribes to: topic filters, each with the subscription identifier that comes back with its messages."""

    def __init__(self, acknowledgements: Acknowledgements) -> None:
        self._acknowledgements = acknowledgements
        self._wanted: dict[str, int | None] = {}

    def __contains__(self, pattern: str) -> bool:
        return pattern in self._wanted

    def add(self, pattern: str, subscription_id: int | None) -> None:
        """Have every connection from now on subscribe to a topic filter."""
        self._wanted[pattern] = subscription_id

    def remove(self, pattern: str) -> bool:
        """Have no further connection subscribe to a topic filter. Return whether it was subscribed to."""
        if pattern not in self._wanted:
            return False
        del self._wanted[pattern]
        return True

    async def restore(self, connection: Connection, limits: Limits) -> None:
        """Subscribe to everything on a new connection.

        Raises:
            LinkLost: if the connection is lost meanwhile.
            TransportError: if the broker refuses a subscription, which is then removed.
        """
        done: dict[str, int | None] = {}
        while done != self._wanted:  # subscriptions may change while the broker answers
            for pattern in done.keys() - self._wanted.keys():
                del done[pattern]
                await self.unsubscribe(connection, pattern)
            missing = {pattern: number for pattern, number in self._wanted.items() if pattern not in done}
            await self.subscribe(connection, missing, limits)
            done |= missing

    async def subscribe(self, connection: Connection, patterns: dict[str, int | None], limits: Limits) -> None:
        """Subscribe to topic filters on a connection.

        Raises:
            LinkLost: if the connection is lost meanwhile.
            TransportError: if the broker refuses a subscription, which is then removed.
        """
        sent: list[tuple[str, asyncio.Future[Any]]] = []
        for pattern, subscription_id in patterns.items():
            if pattern.startswith("$share/") and not limits.shared_subscriptions:
                continue  # a broker without them would end the connection
            packet_id, acknowledged = self._acknowledgements.expect()
            sent.append((pattern, acknowledged))
            # without retain_as_published, the retain flag tells messages from the broker's memory from new ones
            topic_filter = mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS.AT_LEAST_ONCE, retain_as_published=False)
            connection.send(
                mqtt5.SubscribePacket(
                    packet_id, [topic_filter], subscription_id=subscription_id if limits.subscription_ids else None
                )
            )
        for pattern, acknowledged in sent:
            answer: mqtt5.SubAckPacket = await acknowledged
            if int(answer.reason_codes[0]) >= 0x80:
                self._wanted.pop(pattern, None)
                raise TransportError(f"the broker refuses the subscription to {pattern}: {describe(answer.reason_codes[0])}")

    async def unsubscribe(self, connection: Connection, pattern: str) -> None:
        """Unsubscribe from a topic filter on a connection.

        Raises:
            LinkLost: if the connection is lost meanwhile.
        """
        packet_id, acknowledged = self._acknowledgements.expect()
        connection.send(mqtt5.UnsubscribePacket(packet_id, [pattern]))
        await acknowledged
