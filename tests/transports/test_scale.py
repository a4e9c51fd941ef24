"""Scale over MQTT: a burst of signals, and many instances that start together."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from runtime.testing import eventually
from tests.broker import Broker
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

SERVICES, REPLICAS = 20, 10


async def test_a_burst_of_100000_signals_grows_memory_by_less_than_50_mib(tmp_path: Path) -> None:
    # the broker drops nothing, so the node has to take every signal
    async with Broker(tmp_path, "allow_anonymous true", "max_queued_messages 0") as broker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.transports.mqtt.burst", broker.url, "100000", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    assert process.returncode == 0
    words = output.decode().split()
    assert float(words[2]) < 50, output
    assert int(words[5].rstrip(",")) + int(words[7]) == 101_000, "each signal was received, or dropped and counted"


def make_service(number: int, calls: tuple[Contract, ...]) -> tuple[Contract, type[Service]]:
    """Create the contract and class of one service, which calls the services given."""
    contract = Contract(f"service-{number}")

    class Where(Request[str]):
        """Return the name of the service."""

    contract.message(Where)

    async def where(self: Service, message: Where, ctx: Context) -> str:
        return self.name

    where.__annotations__ = {"message": Where, "ctx": Context, "return": str}
    members = {"contract": contract, "calls": calls, "where": handles(allow=ANYONE)(where), "__module__": __name__}
    return contract, type(f"Service{number}", (Service,), members)


def many(count: int) -> list[type[Service]]:
    """Create that many services, each of which calls the three before it."""
    contracts: list[Contract] = []
    services: list[type[Service]] = []
    for number in range(count):
        contract, service = make_service(number, tuple(contracts[-3:]))
        contracts.append(contract)
        services.append(service)
    return services


async def test_two_hundred_instances_of_twenty_services_find_each_other(broker: Broker) -> None:
    """The time this takes is measured by tests/bench/scaling.py; docs/scaling.md has the figures."""
    settings = MqttSettings(url=broker.url)
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(Node([], MqttTransport(settings), name="watcher"))
        await watcher.environment.watch(None)
        nodes = [Node([service], MqttTransport(settings)) for service in many(SERVICES) for _ in range(REPLICAS)]
        await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
        await eventually(lambda: len(list(watcher.registry)) == SERVICES * REPLICAS, "the watcher sees all instances")
        last = nodes[-1].registry
        await eventually(lambda: len(list(last)) == 3 * REPLICAS, "a service that calls three others sees all of their instances")
        assert {member.manifest.service for member in last} == {"service-16", "service-17", "service-18"}, (
            "a node sees only the services that it calls"
        )
