"""A TCP proxy between nodes and their broker or peer, whose links can be cut, frozen, half opened, slowed, or made to repeat."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType

from runtime.sockets import any_free_port

_CHUNK = 2048
_SLOW_PART = 1024
"""The bytes that a slow link passes on at a time, so that something is heard all the time."""
_PUBLISH, _DUP = 3, 0x08


class Packets:
    """A stream of MQTT, cut into its packets (MQTT 5.0, section 2.1)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, twice: bool) -> bytes:
        """Return the packets that are complete, each PUBLISH of them twice if asked for."""
        self._rest += data
        packets: list[bytes] = []
        while (size := self._first()) is not None:
            packet, self._rest = self._rest[:size], self._rest[size:]
            packets.append(packet)
            if twice and packet[0] >> 4 == _PUBLISH:
                again = _DUP if packet[0] & 0x06 else 0  # without an acknowledgement, nothing says that it is a duplicate
                packets.append(bytes((packet[0] | again,)) + packet[1:])
        return b"".join(packets)

    def _first(self) -> int | None:
        """Return the size of the first packet, or None if it is not complete."""
        length = 0
        for position, byte in enumerate(self._rest[1:5]):
            length |= (byte & 0x7F) << 7 * position
            if not byte & 0x80:
                size = 2 + position + length
                return size if len(self._rest) >= size else None
        return None


class Proxy:
    """A TCP proxy that forwards every connection on its own port to another port, and can be made to fail.

    Args:
        to: the other port. It can be changed; it holds for new connections.
        mqtt: whether the connections speak MQTT.
    """

    def __init__(self, to: int, *, mqtt: bool = False) -> None:
        self.to = to
        self.port = any_free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.rate: int | None = None
        """The bytes per second that pass in each direction, or None for no limit."""
        self.delay = 0.0
        """The seconds that everything takes in each direction."""
        self.twice = False
        """Whether what is sent arrives twice: each PUBLISH of MQTT, or all that is sent on a new connection of another protocol."""
        self._mqtt = mqtt
        self._open = asyncio.Event()
        self._open.set()
        self._replies_open = asyncio.Event()
        self._replies_open.set()
        self._links: list[tuple[asyncio.StreamWriter, ...]] = []
        self._forwarding: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Proxy":
        await self.listen()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.refuse()
        self.thaw()
        self.cut()
        for task in self._forwarding:
            task.cancel()
        await asyncio.gather(*self._forwarding, return_exceptions=True)

    async def listen(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def refuse(self) -> None:
        """Stop accepting connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def cut(self) -> None:
        """End every connection with a reset."""
        links, self._links = self._links, []
        for link in links:
            for side in link:
                side.transport.abort()

    def freeze(self) -> None:
        """Stop forwarding silently, without a FIN or a reset."""
        self._open.clear()

    def half_open(self) -> None:
        """Forward what the nodes send, but nothing that is sent to them."""
        self._replies_open.clear()

    def thaw(self) -> None:
        """Forward everything again."""
        self._open.set()
        self._replies_open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.to)
            sinks = [target_writer]
            if self.twice and not self._mqtt:
                ignored, second = await asyncio.open_connection("127.0.0.1", self.to)
                sinks.append(second)
                self._start(self._ignore(ignored))
        except OSError:
            writer.transport.abort()
            return
        self._links.append((writer, *sinks))
        for source, to, gate in ((reader, sinks, self._open), (target_reader, [writer], self._replies_open)):
            arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
            self._start(self._receive(source, arrived))
            self._start(self._forward(arrived, to, gate))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._forwarding.add(task)
        task.add_done_callback(self._forwarding.discard)

    async def _receive(self, source: asyncio.StreamReader, arrived: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop, packets, data = asyncio.get_running_loop(), Packets(), b"."
        while data:
            try:
                data = await source.read(_CHUNK)
            except OSError:
                data = b""
            passed = packets.feed(data, self.twice) if self._mqtt else data
            if passed or not data:
                await arrived.put((loop.time() + self.delay, passed if data else b""))

    async def _forward(
        self, arrived: asyncio.Queue[tuple[float, bytes]], sinks: list[asyncio.StreamWriter], gate: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                due, data = await arrived.get()
                if not data:
                    return
                await asyncio.sleep(due - loop.time())
                await self._open.wait()
                await gate.wait()
                while data:
                    part = data if self.rate is None else data[:_SLOW_PART]
                    data = data[len(part) :]
                    if self.rate is not None:
                        await asyncio.sleep(len(part) / self.rate)
                    for sink in sinks:
                        sink.write(part)
                        await sink.drain()
        except OSError:
            pass
        finally:
            for sink in sinks:
                sink.transport.abort()
            while not arrived.empty():
                arrived.get_nowait()

    async def _ignore(self, reader: asyncio.StreamReader) -> None:
        try:
            while await reader.read(_CHUNK):
                pass
        except OSError:
            pass
