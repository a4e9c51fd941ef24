"""The observation of nodes by the console, on every transport."""

import asyncio
import logging
from pathlib import Path

import pytest

from gateway.service import Gateway
from runtime import Context, Contract, Node, Service
from runtime.node import observation
from runtime.node.observation import Observe, Observed
from runtime.node.proxy import NoNode, Proxy
from runtime.recorder import RecordedSpan, Recorder
from runtime.testing import eventually
from tests.services.test_rides import add_scooter, start, top_up
from tests.system_under_test import IN_PROCESS, System, open_deployment, open_system, settings
from transports.memory import MemoryTransport

SHORT = ("zero-copy", "mqtt-separate-nodes", "http-separate-nodes")
"""The deployments on which the shorter run sees a ride, too."""


def proxy_of(system: System) -> Proxy:
    return system.service(Gateway).proxy


async def observe(system: System, before: dict[str, Observed] | None = None) -> dict[str, Observed]:
    """Ask all nodes what they have recorded."""
    found: dict[str, Observed] = {}
    for node in system.nodes:
        known = None if before is None else before.get(node.id)
        message = Observe() if known is None else Observe(known.recording, known.last_span, known.last_log)
        found[node.id] = await proxy_of(system).ask_node(node.id, message, 5)
    return found


@pytest.mark.parametrize(
    "deployment_name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in IN_PROCESS]
)
async def test_a_ride_is_seen_in_every_service_that_takes_part(tmp_path: Path, deployment_name: str) -> None:
    async with open_deployment(deployment_name, tmp_path) as system:
        scooter = await add_scooter(system)
        rider = await system.bearer()
        await top_up(system, rider, 2000)
        begun = await observe(system)
        assert (await start(system, rider, scooter)).status_code == 201
        edges: set[tuple[str, str, str, str]] = set()
        spans: dict[str, RecordedSpan] = {}

        async def seen() -> bool:
            for found in (await observe(system, begun)).values():
                edges.update((edge.caller, edge.service, edge.name, edge.kind) for edge in found.edges)
                spans.update({span.id: span for span in found.spans})
            return edges >= EXPECTED

        await eventually(seen, "the ride was recorded", 20)
        [root] = [span for span in spans.values() if span.name == "POST /rides"]
        of_ride = {(span.service, span.name): span for span in spans.values() if span.trace == root.trace}
        assert {"gateway", "rides", "wallet", "fleet", "notices"} <= {service for service, _ in of_ride}
        hold = of_ride["wallet", "wallet.Hold"]
        above = [hold]
        while above[-1].parent:
            above.append(spans[above[-1].parent])
        assert above[-1] == root
        assert ("rides", "rides.StartRide") in {(span.service, span.name) for span in above}


EXPECTED = {
    ("clients", "gateway", "POST /rides", "http"),
    ("gateway", "rides", "rides.StartRide", "call"),
    ("rides", "wallet", "wallet.Hold", "call"),
    ("rides", "fleet", "fleet.Reserve", "call"),
    ("rides", "wallet", "rides.RideStarted", "event"),
    ("rides", "notices", "rides.RideStarted", "event"),
}


async def test_nothing_is_recorded_once_nobody_asks_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "LEASE", 0.3)
    async with open_system(settings(tmp_path)) as system:
        node = system.node
        assert node.environment.tracing is None
        endpoints = node.caller.local["wallet"].values()
        usual = [endpoint.is_plain for endpoint in endpoints]
        first = (await observe(system))[node.id]
        assert not any(endpoint.is_plain for endpoint in endpoints)
        await eventually(lambda: node.environment.tracing is None, "the recorder is off")
        assert [endpoint.is_plain for endpoint in endpoints] == usual
        await system.bearer()
        again = (await observe(system, {node.id: first}))[node.id]
        assert again.recording != first.recording
        assert not [edge for edge in again.edges if edge.name == "auth.Login"], "it was made while nobody looked"


async def test_it_goes_on_as_long_as_somebody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "LEASE", 0.5)
    async with open_system(settings(tmp_path)) as system:
        found = await observe(system)
        for _ in range(8):
            await asyncio.sleep(0.15)
            before, found = found, await observe(system, found)
            assert [one.recording for one in found.values()] == [one.recording for one in before.values()]


async def test_log_records_have_the_request_that_was_worked_for(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        begun = await observe(system)
        headers = await system.bearer() | {"X-Request-Id": "the-request"}
        assert (await system.client.get("/rides/nothing", headers=headers)).status_code == 404
        system.node.environment.log.error("something else\x1b[2J")
        found = (await observe(system, begun))[system.node.id]
        assert [line.message for line in found.logs if not line.request] == ["something else\\x1b[2J"]
        again = (await observe(system, {system.node.id: found}))[system.node.id]
        assert again.logs == ()


async def test_an_exception_without_a_text_does_not_reach_the_service_that_logs_it(tmp_path: Path) -> None:
    class Strange(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    async with open_system(settings(tmp_path)) as system:
        await observe(system)
        logging.getLogger("callboard.node").error("strange", exc_info=Strange())


async def test_the_gateway_that_wants_the_fewest_traces_counts(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        for one_in in (64, 1, 8):
            await proxy_of(system).ask_node(system.node.id, Observe(one_in=one_in), 5)
        tracing = system.node.environment.tracing
        assert isinstance(tracing, Recorder)
        assert tracing.one_in == 64


async def test_a_service_that_starts_while_it_is_turned_on_or_off_is_recorded_like_the_others() -> None:
    slow = Contract("slow")

    class Slow(Service):
        contract = slow
        go = asyncio.Event()
        begun = asyncio.Event()

        async def on_start(self, ctx: Context) -> None:
            self.begun.set()
            await self.go.wait()

    node = Node([Slow], MemoryTransport())
    observation = node._observation  # pyright: ignore[reportPrivateUsage]
    starting = asyncio.create_task(node.__aenter__())
    await Slow.begun.wait()
    await observation.answer(Observe())
    Slow.go.set()
    await starting
    assert node.inbound.instances["slow"].tracing is node.environment.tracing is not None
    observation.end()
    assert node.inbound.instances["slow"].tracing is node.environment.tracing is None
    await node.stop()


async def test_there_is_no_node_of_another_name(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        with pytest.raises(NoNode):
            await proxy_of(system).ask_node("nothing", Observe(), 1)
