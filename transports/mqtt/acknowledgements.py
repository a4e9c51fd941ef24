"""What was sent to the broker and awaits its acknowledgement: packet ids, the send quota, and pings."""

import asyncio
from collections import deque
from typing import Any

import mqtt5

from runtime.network import LinkLost

Acknowledgement = mqtt5.PubAckPacket | mqtt5.SubAckPacket | mqtt5.UnsubAckPacket | mqtt5.PingRespPacket

_LARGEST_ID = 65_535


class Acknowledgements:
    """The acknowledgements that a link waits for.

    The broker limits how many QoS 1 publications may await their PUBACK at once (Receive Maximum; MQTT 5, section 4.9).
    Senders beyond that quota wait in order of arrival.
    """

    def __init__(self) -> None:
        self._expected: dict[int, asyncio.Future[Any]] = {}
        self._pings: deque[asyncio.Future[None]] = deque()
        self._last_id = 0
        self._quota = 0
        self._lost: str | None = "there is no connection yet"
        """Why nothing can be acknowledged: the connection has ended. None while there is one."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Acknowledgements expected={len(self._expected)} pings={len(self._pings)} quota={self._quota}>"

    def begin(self, receive_maximum: int) -> None:
        """Start with the send quota that the broker has granted to a new connection."""
        self._quota, self._lost = receive_maximum, None

    def fail(self, reason: str) -> None:
        """Fail everything that is awaited with `LinkLost`, and let the senders that wait for the quota look at the link again.

        Until the next `begin`, everything that is expected fails at once: it cannot be sent.
        """
        self._quota, self._lost = 0, reason
        awaited, self._expected = [*self._expected.values(), *self._pings], {}
        self._pings.clear()
        for future in awaited:
            _fail(future, reason)
        waiting, self._waiting = self._waiting, deque()
        for sender in waiting:
            if not sender.done():
                sender.set_result(None)

    def expect(self) -> "tuple[int, asyncio.Future[Any]]":
        """Return an unused packet id, and a future for the packet that acknowledges it."""
        while True:
            self._last_id = self._last_id % _LARGEST_ID + 1
            if self._last_id not in self._expected:
                break
        expected: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            _fail(expected, self._lost)
        else:
            self._expected[self._last_id] = expected
        return self._last_id, expected

    def give_up(self, packet_id: int) -> None:
        """Take back a QoS 1 publication that could not be sent."""
        if self._expected.pop(packet_id, None) is not None:
            self._quota += 1
            self._wake_next()

    def expect_pong(self) -> "asyncio.Future[None]":
        """Return a future for the broker's answer to the ping that is sent next."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            _fail(pong, self._lost)
        else:
            self._pings.append(pong)
        return pong

    def received(self, packet: Acknowledgement) -> None:
        """Handle an acknowledgement. The answer to a ping has no id: it belongs to the oldest one."""
        if isinstance(packet, mqtt5.PingRespPacket):
            pong = self._pings.popleft() if self._pings else None
            if pong is not None and not pong.done():
                pong.set_result(None)
            return
        expected = self._expected.pop(packet.packet_id, None)
        if expected is not None and not expected.done():
            expected.set_result(packet)
        if isinstance(packet, mqtt5.PubAckPacket):
            self._quota += 1
            self._wake_next()

    def take_quota(self) -> bool:
        """Count one more QoS 1 publication against the quota. Return False if the quota is used up."""
        if self._quota <= 0:
            return False
        self._quota -= 1
        return True

    async def wait_for_quota(self) -> None:
        """Wait for a place in the quota, or for the end of the connection. The caller has to call `take_quota` again."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come: pass it on
                self._wake_next()
            raise

    def _wake_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


def _fail(future: "asyncio.Future[Any]", reason: str) -> None:
    if not future.done():
        future.set_exception(LinkLost(reason))
        future.exception()  # the sender may no longer wait for it
