"""Keepalive: pings a quiet broker, and ends the connection to a silent one."""

import asyncio

import mqtt5

from transports.mqtt.acknowledgements import Acknowledgements
from transports.mqtt.connection import Connection


async def keep_alive(
    connection: Connection, ended: "asyncio.Future[str]", promised: float, keepalive: float, acknowledgements: Acknowledgements
) -> str:
    """Keep a connection alive until it ends.

    Args:
        ended: Done with a reason when the connection has ended.
        promised: How often the broker hears from this node at least, in seconds: the broker may have asked for more than the
            setting (Server Keep Alive). After half of it without traffic in either direction the broker gets a ping.
        keepalive: In seconds. After one and a half of it without a packet from the broker the connection is ended.

    Returns:
        The reason why the connection ended.
    """
    loop = asyncio.get_running_loop()
    while not ended.done():
        await asyncio.wait((ended,), timeout=promised / 4)
        now = loop.time()
        if now - connection.heard_at > keepalive * 1.5:
            connection.abort("the broker is silent")
        elif now - min(connection.sent_at, connection.heard_at) > promised / 2:  # the broker expects to hear from us, too
            acknowledgements.expect_pong()
            connection.send(mqtt5.PingReqPacket())
    return ended.result()
