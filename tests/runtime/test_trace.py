"""The trace context: the rules of W3C Trace Context and W3C Baggage, and every hop that it takes through the system."""

from pathlib import Path

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, SERVICES, Context, Contract, Event, Request, Service, Signal, Struct, Transaction, handles, subscribes
from runtime.testing import eventually
from runtime.trace import TraceFields, accept_fields, accept_parent, as_stored, from_stored
from tests.topology import Topology

IDS = "12345678901234567890123456789012-1234567890123456"
PARENT = f"00-{IDS}-01"


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (PARENT, PARENT),
        (f"00-{IDS}-fe", f"00-{IDS}-fe"),
        (f"cc-{IDS}-01", PARENT),
        (f"cc-{IDS}-01-what-the-future-will-be-like", PARENT),
        (f"01-{IDS}-ff-x", f"00-{IDS}-03"),
        (f"cc-{IDS}-01.what-the-future-will-be-like", None),
        (f"ff-{IDS}-01", None),
        (f"00-{IDS}-01-x", None),
        (f"00-{IDS}-01.", None),
        (f"00-{IDS}-1", None),
        (f"00-{IDS}-001", None),
        (f"0-{IDS}-01", None),
        (f"000-{IDS}-01", None),
        (f".0-{IDS}-01", None),
        (f"00-{IDS}-.0", None),
        (f"00-{IDS.replace('1', 'A')}-01", None),
        (f"00-{'0' * 32}-1234567890123456-01", None),
        (f"00-{'1' * 32}-{'0' * 16}-01", None),
        (f"00-{'1' * 31}-{'1' * 16}-01", None),
        (f"00-{'1' * 33}-{'1' * 16}-01", None),
        (f"00-{'1' * 32}-{'1' * 15}-01", None),
        (f"00-{'1' * 32}-{'1' * 17}-01", None),
        (f"{PARENT}\n", None),
        ("", None),
    ],
)
def test_which_traceparent_is_accepted(given: str, accepted: str | None) -> None:
    assert accept_parent(given) == accepted


VALUE = "".join(map(chr, (*range(0x20, 0x2C), *range(0x2D, 0x3D), *range(0x3E, 0x7F))))
KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
TWELVE = ",".join(f"bar{number:02}={number:02}" for number in range(12))


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("foo=1,bar=2", "foo=1,bar=2"),
        ("foo=1 \t , \t bar=2, ,\tbaz=3", "foo=1,bar=2,baz=3"),
        (f"{KEY}={VALUE}", f"{KEY}={VALUE}"),
        (f"{KEY}@a-z0-9_-*/={VALUE}", f"{KEY}@a-z0-9_-*/={VALUE}"),
        ("foo=1,foo=1", ""),
        ("foo=1,foo=2", ""),
        ("foo =1", ""),
        ("FOO=1", ""),
        ("foo.bar=1", ""),
        *((f"{key}=1,bar=2", "") for key in ("foo@", "@foo", "foo@@bar", "foo@bar@baz")),
        (f"foo=1,{'z' * 256}=1", f"foo=1,{'z' * 256}=1"),
        (f"foo=1,{'z' * 257}=1", ""),
        (f"foo=1,{'t' * 241}@{'v' * 14}=1", f"foo=1,{'t' * 241}@{'v' * 14}=1"),
        (f"foo=1,{'t' * 242}@v=1", ""),
        (f"foo=1,t@{'v' * 15}=1", ""),
        ("foo=bar=baz", ""),
        ("foo=,bar=3", ""),
        ("foo=\u00e9", ""),
        (",".join(f"b{number}=1" for number in range(32)), ",".join(f"b{number}=1" for number in range(32))),
        (",".join(f"b{number}=1" for number in range(33)), ""),
        (f"a=1,b={'x' * 200},{TWELVE},c={'y' * 200}", f"a=1,b={'x' * 200},{TWELVE}"),  # large members go first, the last ones
        (
            ",".join(f"b{number:02}={'x' * 20}" for number in range(32)),
            ",".join(f"b{number:02}={'x' * 20}" for number in range(20)),
        ),
        ("", ""),
    ],
)
def test_which_tracestate_is_passed_on(given: str, accepted: str) -> None:
    found = accept_fields(PARENT, TraceFields(given, ""))
    assert (found.tracestate if found else "") == accepted
    assert len(accepted) <= 520
    for parent in (None, "", f"ff-{IDS}-01"):
        assert accept_fields(parent, TraceFields(given, "")) is None, "a tracestate without a traceparent means nothing"


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("userId=alice", "userId=alice"),
        ("a=%C3%A9 ; p = 1;q , b = 2", "a=%C3%A9 ; p = 1;q,b = 2"),
        ("a=1,no value,b=2,c=\u00e9,=3,d=", "a=1,b=2,d="),
        (",".join(f"k{number}=v" for number in range(70)), ",".join(f"k{number}=v" for number in range(64))),
        (f"a=1,b={'x' * 9000}", "a=1"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("parent", [PARENT, None])
def test_which_baggage_is_passed_on(given: str, accepted: str, parent: str | None) -> None:
    found = accept_fields(parent, TraceFields("", given))
    assert (found.baggage if found else "") == accepted


def test_a_stored_trace_is_read_as_it_was() -> None:
    for fields in (None, TraceFields("a=1", ""), TraceFields("", "b=2"), TraceFields("a=1", "b=2")):
        assert from_stored(as_stored(PARENT, fields)) == (PARENT, fields)
    assert from_stored("anything") == ("anything", None)


first, second, third = Contract("first"), Contract("second"), Contract("third")


class Seen(Struct):
    headers: tuple[tuple[str, str], ...]


@first.message
class Enter(Request[Seen]):
    pass


@second.message
class Ask(Request[Seen]):
    pass


@second.message
class Asked(Event):
    pass


@second.message
class Rang(Signal):
    pass


class First(Service):
    contract = first
    calls = (second,)

    @handles(http="POST /enter", allow=ANYONE)
    async def enter(self, message: Enter, ctx: Context) -> Seen:
        return await ctx.request(Ask())


class Second(Service):
    contract = second

    @handles(allow=SERVICES)
    async def ask(self, message: Ask, ctx: Context, tx: Transaction) -> Seen:
        await tx.publish(Asked())
        await ctx.publish(Rang())
        return Seen(tuple(ctx.trace_headers().items()))


class Third(Service):
    contract = third

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, str]] = {}

    @subscribes
    async def on_asked(self, event: Asked, ctx: Context, tx: Transaction) -> None:
        self.seen["event"] = ctx.trace_headers()

    @subscribes
    async def on_rang(self, signal: Rang, ctx: Context) -> None:
        self.seen["signal"] = ctx.trace_headers()


async def test_the_trace_goes_through_every_hop(topology: Topology) -> None:
    """From the gateway through two services, and through an event and a signal to a third."""
    await topology.start(First, Second, Third, lambda: Gateway(GatewaySettings(port=0)))
    sent = {"traceparent": f"cc-{IDS}-01-later", "tracestate": "foo=1, bar=2", "baggage": "user=alice;ttl=3 , bad"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{topology.service(Gateway).port}", verify=False) as client:
        answer = await client.post("/enter", headers=sent)
    third = topology.service(Third)
    await eventually(lambda: len(third.seen) == 2, "the event and the signal have arrived")
    parents = set[str]()
    for seen in (dict(answer.json()["headers"]), *third.seen.values()):
        parent = seen.pop("traceparent")
        assert parent[:36] == PARENT[:36]
        assert parent[52:] == "-01"
        parents.add(parent[36:52])
        assert seen == {"tracestate": "foo=1,bar=2", "baggage": "user=alice;ttl=3"}
    assert len(parents - {"1234567890123456"}) == 3, "each request to another system has a parent id of its own"


async def test_headers_outside_a_trace_begin_one(one_node: Topology, tmp_path: Path) -> None:
    await one_node.start(Second)
    ctx = await one_node.client(second)
    one, other = ctx.trace_headers(), ctx.trace_headers()
    assert one.keys() == other.keys() == {"traceparent"}
    assert one["traceparent"][:36] == other["traceparent"][:36] == ctx.trace[:36]
    assert one["traceparent"] != other["traceparent"]
