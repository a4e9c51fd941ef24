"""Spans: which there are, what they are the children of, and that a trace which is not sampled has none."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer, get_current_span

from runtime import (
    ANYONE,
    Context,
    Contract,
    Event,
    Node,
    Request,
    Service,
    ServiceError,
    Transaction,
    every,
    handles,
    subscribes,
)
from runtime.node.proxy import Proxy
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from runtime.tracing import Kind
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

front, back = Contract("front"), Contract("back")
SAMPLED, NOT_SAMPLED = (f"00-{'a' * 32}-{'b' * 16}-0{flag}" for flag in "10")


class Spans:
    """Keeps the spans of all nodes in memory."""

    follows_parent = True

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def samples_root(self, trace: int, name: str, kind: Kind) -> bool:
        return True

    def tracer(self, service: str, node: str) -> Tracer:
        provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        return provider.get_tracer("test")

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def the(self, name: str, kind: str) -> ReadableSpan:
        [found] = [span for span in self.all() if (span.name, span.kind.name) == (name, kind)]
        return found


@back.message
class Answer(Request[str]):
    fail: bool = False


@back.message
class Answered(Event):
    pass


@back.message
class No(ServiceError):
    """It does not answer."""

    code, status = "no", 409


@front.message
class Ask(Request[str]):
    fail: bool = False


class Back(Service):
    contract = back

    @handles(allow=ANYONE, raises=(No,))
    async def answer(self, message: Answer, ctx: Context, tx: Transaction) -> str:
        await tx.publish(Answered())
        if message.fail:
            raise No
        return ctx.trace


class Front(Service):
    contract = front
    calls = (back,)
    seen: ClassVar[list[str]] = []

    @handles(allow=ANYONE)
    async def ask(self, message: Ask, ctx: Context) -> str:
        Front.seen.append(f"{get_current_span().get_span_context().span_id:016x}")
        return await ctx.request(Answer(message.fail))

    @subscribes
    async def on_answered(self, event: Answered, ctx: Context, tx: Transaction) -> None:
        Front.seen.append(ctx.trace)

    @every(seconds=0.05, each=True)
    async def tick(self, ctx: Context) -> None:
        await asyncio.sleep(0)


class System:
    def __init__(self, ctx: Context, spans: Spans) -> None:
        self.proxy = Proxy(ctx)
        self.spans = spans

    async def ask(self, trace: str, *, fail: bool = False) -> str:
        ctx = self.proxy.context("r", None, trace, 10)
        return await ctx.request(Ask(fail))


@pytest.fixture(params=["zero-copy", "serialized", "apart"])
async def system(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    Front.seen.clear()
    spans, network = Spans(), MemoryNetwork()
    settings = MemorySettings(zero_copy=request.param == "zero-copy")
    groups: list[list[type[Service]]] = [[Back], [Front]] if request.param == "apart" else [[Back, Front]]
    async with AsyncExitStack() as stack:
        for group in groups:
            transport = MemoryTransport(network, settings)
            node = await stack.enter_async_context(
                Node(group, transport, databases=SqliteFolder(tmp_path, durable=False), spans=spans)
            )
        await node.registry.wait_for("back", "front")
        yield System(node.client("client", (front,)), spans)


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


async def test_the_spans_of_a_request_its_transaction_and_its_event_make_one_trace(system: System) -> None:
    trace = await system.ask(SAMPLED)
    await eventually(lambda: any(span.name == "process back.Answered" for span in system.spans.all()), "the event is applied")
    asked, answered = system.spans.the("front.Ask", "SERVER"), system.spans.the("back.Answer", "SERVER")
    committed = system.spans.the("transaction back", "CLIENT")
    applied = system.spans.the("process back.Answered", "CONSUMER")
    calling = [id_of(span) for span in system.spans.all() if (span.name, span.kind.name) == ("front.Ask", "CLIENT")]
    assert parent_of(asked) == (calling[0] if calling else "b" * 16)
    between = [span for span in system.spans.all() if (span.name, span.kind.name) == ("back.Answer", "CLIENT")]
    assert parent_of(answered) == id_of(between[0] if between else asked)
    assert (parent_of(committed), trace[36:52]) == (id_of(answered), id_of(answered))
    assert parent_of(applied) == id_of(committed)
    assert [f"{link.context.span_id:016x}" for link in applied.links] == [id_of(committed)]
    assert Front.seen == [id_of(asked), f"00-{'a' * 32}-{id_of(applied)}-01"], "other libraries see the span, too"
    assert {f"{span.context.trace_id:032x}" for span in system.spans.all() if span.context and span.kind.name != "INTERNAL"} == {
        "a" * 32
    }
    assert applied.resource.attributes["service.name"] == "front"


async def test_a_trace_that_is_not_sampled_has_no_spans(system: System) -> None:
    trace = await system.ask(NOT_SAMPLED)
    assert trace.startswith(NOT_SAMPLED[:35])
    await eventually(lambda: len(Front.seen) == 2, "the event is applied")
    assert [span.name for span in system.spans.all() if span.kind.name != "INTERNAL"] == []


async def test_an_error_is_named(system: System) -> None:
    with pytest.raises(ServiceError):
        await system.ask(SAMPLED, fail=True)
    for name in ("front.Ask", "back.Answer"):
        span = system.spans.the(name, "SERVER")
        assert (span.status.status_code.name, (span.attributes or {})["error.type"]) == ("ERROR", "no")


async def test_every_parent_is_a_span_or_came_from_outside(system: System) -> None:
    await system.ask(SAMPLED)
    await eventually(lambda: any(span.kind.name == "INTERNAL" for span in system.spans.all()), "a tick")
    await asyncio.sleep(0)
    spans = system.spans.all()
    known = {id_of(span) for span in spans} | {"", "b" * 16}
    running = {"front.Ask", "back.Answer", "transaction back"}
    assert [span.name for span in spans if parent_of(span) not in known and span.name not in running] == []


async def test_a_timer_begins_a_trace(system: System) -> None:
    await eventually(lambda: any(span.name == "front.tick" for span in system.spans.all()), "a tick")
    tick = next(span for span in system.spans.all() if span.name == "front.tick")
    assert (tick.kind.name, tick.parent) == ("INTERNAL", None)
