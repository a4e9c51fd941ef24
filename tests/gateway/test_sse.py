"""Server-sent events: what reaches the client."""

from typing import Any

from gateway.sse import EventStream


class Written:
    """Collects what a stream sends."""

    def __init__(self) -> None:
        self.text = ""

    async def send(self, message: dict[str, Any]) -> None:
        self.text += message.get("body", b"").decode()


async def test_a_heartbeat_is_nothing_to_any_client() -> None:
    """httpx-sse takes an empty line for the end of an event, also of an empty one, once it has seen an id."""
    written = Written()
    stream = EventStream(written.send, patience=1)
    await stream.begin()
    await stream.heartbeat()
    await stream.position("notices=1")
    await stream.event("ride-ended", {"number": 2}, position="notices=2")
    blocks = written.text.count("\n\n")
    for _ in range(3):
        await stream.heartbeat()
    assert written.text.count("\n\n") == blocks == 2
    assert written.text.endswith("\n\n:\n:\n:\n"), "comments alone"
    await stream.event("ride-ended", {"number": 3}, position="notices=3")
    assert written.text.endswith(':\n:\n:\nid: notices=3\nevent: ride-ended\ndata: {"number":3}\n\n')


async def test_a_stream_without_a_position_sends_none() -> None:
    written = Written()
    stream = EventStream(written.send, patience=1)
    await stream.position("")
    await stream.event("end", {}, retry=60)
    assert written.text == "retry: 1000\nretry: 60000\nevent: end\ndata: {}\n\n"
