"""A TCP proxy between nodes and their broker or peer, whose links can be cut, frozen, half opened, or slowed."""

import asyncio
from types import TracebackType

from runtime.sockets import any_free_port

_CHUNK = 2048


class Proxy:
    """A TCP proxy that forwards every connection on its own port to another port, and can be made to fail."""

    def __init__(self, to: int) -> None:
        self.port = any_free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.rate: int | None = None
        """The bytes per second that pass in each direction, or None for no limit."""
        self._to = to
        self._open = asyncio.Event()
        self._open.set()
        self._replies_open = asyncio.Event()
        self._replies_open.set()
        self._links: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
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
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._links.append((writer, target_writer))
        for source, sink, gate in ((reader, target_writer, self._open), (target_reader, writer, self._replies_open)):
            task = asyncio.create_task(self._forward(source, sink, gate))
            self._forwarding.add(task)
            task.add_done_callback(self._forwarding.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._open.wait()
                await gate.wait()
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort()
