"""The conformance kit and `eventually` say what did not hold."""

import pytest

from runtime import CallboardError
from runtime.network import Address, Envelope
from runtime.testing import ConformanceError, Kit, eventually
from transports.memory import MemoryNetwork, MemoryTransport


async def test_eventually_says_what_did_not_come_true() -> None:
    assert issubclass(ConformanceError, CallboardError)
    with pytest.raises(ConformanceError, match="did not come true: the sky is green"):
        await eventually(lambda: False, "the sky is green", seconds=0.01)


class Impostor(MemoryTransport):
    """Sends requests in the name of another service."""

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        return super().unicast_now(to, envelope, "somebody-else" if envelope.kind == "request" else sender)


async def test_a_transport_that_does_not_conform_is_refused() -> None:
    network = MemoryNetwork()
    with pytest.raises(ConformanceError, match="the callee knows the calling service"):
        await Kit(lambda: Impostor(network)).run("caller_is_known")
