"""The socket on which the HTTP server listens: how to close it without losing a connection.

A listener that is closed resets the connections that the kernel has accepted for it but that the server has not. So new ones
are turned away first: the kernel drops their SYN packets. The clients send these again a second later (RFC 6298, section 2),
and then another gateway that shares the port gets them. Meanwhile the server takes the connections that are complete.
"""

import ctypes
import os
import socket
import stat
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
    """The listening socket of a server that this process started.

    Args:
        port: the port that the server listens on.
        known: the inodes of sockets that other servers of this process listen on.
    """

    def __init__(self, port: int, known: frozenset[int]) -> None:
        self._sockets: list[socket.socket] = []
        for found in _listening(port):
            if os.fstat(found.fileno()).st_ino in known:
                found.close()
            else:
                self._sockets.append(found)

    def turn_away(self) -> None:
        """Let no new connection begin. Where the system cannot do that, nothing happens."""
        instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
        program = ctypes.create_string_buffer(instructions)
        for listening in self._sockets:
            with suppress(OSError):
                listening.setsockopt(
                    socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
                )

    def detect_cut_connections(self, seconds: float) -> None:
        """Have the system end the connections whose clients have vanished (see `detect_cut_connection`).

        They inherit this from the listener. Other systems than Linux have no such option, so nothing happens there: they notice
        only when they give up sending again.

        Args:
            seconds: how long a client may acknowledge nothing.
        """
        for listening in self._sockets:
            detect_cut_connection(listening, seconds)

    def queued(self) -> int:
        """Return how many complete connections wait for the server to accept them."""
        return sum(
            _QUEUED.unpack(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED.size))[0]
            for listening in self._sockets
        )

    def close(self) -> None:
        """Forget the socket. The server's own descriptor stays open."""
        for listening in self._sockets:
            listening.close()
        self._sockets = []


def listening_inodes(port: int) -> frozenset[int]:
    """Return the inodes of the sockets of this process that listen on a port."""
    found = _listening(port)
    inodes = frozenset(os.fstat(listening.fileno()).st_ino for listening in found)
    for listening in found:
        listening.close()
    return inodes


def _listening(port: int) -> list[socket.socket]:
    """Return duplicates of the sockets of this process that listen on a port: on Linux, elsewhere none."""
    found: list[socket.socket] = []
    if sys.platform != "linux":
        return found
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            candidate = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        try:
            if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and candidate.getsockname()[1] == port:
                found.append(candidate)
                continue
        except (OSError, IndexError):  # not one of the internet
            pass
        candidate.close()
    return found
