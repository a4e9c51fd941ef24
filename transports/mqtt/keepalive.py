"""Keepalive: pings a quiet broker, and ends the connection to a silent one."""

import asyncio

import mqtt5

from transports.mqtt.acknowledgements import Acknowledgements
from transports.mqtt.connection import Connection


async def keep_alive(
    connection: Connection, ended: "asyncio.Future[str]", keepalive: float, acknowledgements: Acknowledgements
) -> str:
    """Keep a connection alive until it ends.

    Args:
        ended: Done with a reason when the connection has ended.
        keepalive: In seconds. After half of it without traffic in either direction the broker gets a ping, and after one
            and a half of it without a packet from the broker the connection is ended.

    Returns:
        The reason why the connection ended.
    """
    loop = asyncio.get_running_loop()
    while not ended.done():
        await asyncio.wait((ended,), timeout=keepalive / 4)
        now = loop.time()
        if now - connection.heard_at > keepalive * 1.5:
            connection.abort("the broker is silent")
        elif now - min(connection.sent_at, connection.heard_at) > keepalive / 2:  # the broker expects to hear from us, too
            acknowledgements.expect_pong()
            connection.send(mqtt5.PingReqPacket())
    return ended.result()
