"""The socket on which the HTTP server listens: how to close it without losing a connection.

A listener that is closed resets the connections that the kernel has accepted for it but that the server has not. So new ones
are turned away first: the kernel drops their SYN packets. The clients send these again a second later (RFC 6298, section 2),
and then another gateway that shares the port gets them. Meanwhile the server takes the connections that are complete.
"""

import ctypes
import socket
import struct
import sys
from contextlib import suppress

from runtime.sockets import detect_cut_connection

_ATTACH_FILTER = 26
"""SO_ATTACH_FILTER on Linux (socket(7)), which Python does not name."""
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags of the TCP header
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone, a new connection?
    (0x06, 0, 0, 0),  # then drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else pass it on
)
"""A classic BPF program (Linux, Documentation/networking/filter.rst)."""
_QUEUED = struct.Struct("8x4x4x4x4xI")
"""The field `tcpi_unacked` of `struct tcp_info`: for a listener, the connections that wait to be accepted."""


class Listener:
    """The socket that the server listens on.

    Args:
        listening: the socket.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening

    def turn_away(self) -> None:
        """Let no new connection begin. Where the system cannot do that, nothing happens."""
        instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
        program = ctypes.create_string_buffer(instructions)
        if sys.platform == "linux":
            with suppress(OSError):
                self._socket.setsockopt(
                    socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
                )

    def detect_cut_connections(self, seconds: float) -> None:
        """Have the system end the connections whose clients have vanished (see `detect_cut_connection`).

        They inherit this from the listener. Other systems than Linux have no such option, so nothing happens there: they notice
        only when they give up sending again.

        Args:
            seconds: how long a client may acknowledge nothing.
        """
        if sys.platform == "linux":
            detect_cut_connection(self._socket, seconds)

    def queued(self) -> int:
        """Return how many complete connections wait for the server to accept them: on Linux, elsewhere 0."""
        if sys.platform != "linux":
            return 0
        return int(_QUEUED.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED.size))[0])
