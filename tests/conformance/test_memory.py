"""The memory transport passes the conformance kit, with and without encoding."""

import pytest

from runtime import Transport
from runtime.testing import Kit, check_transport
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport


async def crash(transport: Transport) -> None:
    assert isinstance(transport, MemoryTransport)
    transport.crash()


@pytest.mark.parametrize("zero_copy", [False, True], ids=["serialized", "zero-copy"])
@pytest.mark.parametrize("case", Kit.cases())
async def test_case(case: str, zero_copy: bool) -> None:
    network = MemoryNetwork()
    await Kit(lambda: MemoryTransport(network, MemorySettings(zero_copy=zero_copy)), crash).run(case)


async def test_the_kit_runs_all_cases_in_one_call() -> None:
    network = MemoryNetwork()
    await check_transport(lambda: MemoryTransport(network), crash)
