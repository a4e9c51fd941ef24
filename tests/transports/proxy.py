"""A TCP proxy between nodes and their broker, with links that can be cut, frozen, halved or slowed."""

import asyncio
from types import TracebackType

from runtime.sockets import any_free_port

_CHUNK = 2048


class Proxy:
    """Passes what comes on a port of its own to another, as well as it is told to."""

    def __init__(self, to: int) -> None:
        self.port = any_free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.rate: int | None = None
        """Bytes a second that pass in each direction; None for as many as come."""
        self._to = to
        self._open = asyncio.Event()
        self._open.set()
        self._back = asyncio.Event()
        self._back.set()
        self._links: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._passing: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Proxy":
        await self.listen()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.refuse()
        self.thaw()
        self.cut()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def listen(self) -> None:
        """Takes connections."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def refuse(self) -> None:
        """Takes no more connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def cut(self) -> None:
        """Ends every connection, with a reset."""
        links, self._links = self._links, []
        for link in links:
            for side in link:
                side.transport.abort()

    def freeze(self) -> None:
        """Passes nothing any more, and says nothing: no FIN, no reset."""
        self._open.clear()

    def half_open(self) -> None:
        """Passes what the nodes say, and nothing of what they should hear."""
        self._back.clear()

    def thaw(self) -> None:
        """Passes everything again."""
        self._open.set()
        self._back.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, here = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._links.append((writer, here))
        for source, sink, gate in ((reader, here, self._open), (there, writer, self._back)):
            task = asyncio.create_task(self._pass(source, sink, gate))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
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
