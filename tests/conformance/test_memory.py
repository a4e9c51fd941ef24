"""The in-memory transport conforms, with and without encoding."""

import pytest

from runtime import Transport
from runtime.testing import Kit, check_transport
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport


async def crash(transport: Transport) -> None:
    assert isinstance(transport, MemoryTransport)
    transport.crash()


@pytest.mark.parametrize("zero_copy", [False, True], ids=["serialized", "zero-copy"])
@pytest.mark.parametrize("case", Kit.cases())
async def test_memory_conforms(case: str, zero_copy: bool) -> None:
    network = MemoryNetwork()
    await Kit(lambda: MemoryTransport(network, MemorySettings(zero_copy=zero_copy)), crash).run(case)


async def test_check_transport_runs_all_cases() -> None:
    network = MemoryNetwork()
    await check_transport(lambda: MemoryTransport(network), crash)
