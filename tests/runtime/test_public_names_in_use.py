"""Every public name does what it is for, used as people outside of this project would use it."""

import ast
import importlib
import typing
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

import runtime
from runtime import (
    ANYONE,
    SERVICES,
    Allow,
    Capabilities,
    Clock,
    ConstraintError,
    Context,
    Contract,
    Database,
    DatabaseError,
    Forbidden,
    Identity,
    InstanceLost,
    Invalid,
    ManualClock,
    Node,
    NodeSettings,
    Random,
    Receiver,
    RemoteError,
    Request,
    Service,
    ServiceError,
    Signal,
    StatementError,
    Struct,
    TokenSettings,
    Transport,
    Unauthenticated,
    Unreachable,
    handles,
    roles,
    services,
)
from runtime.network import (
    Address,
    Envelope,
    EnvelopeKind,
    ErrorInfo,
    Head,
    HttpBinding,
    LinkLost,
    LiveInfo,
    Manifest,
    Member,
    Params,
    PeerUnreachable,
    Registry,
    RequestInfo,
    TooLarge,
    Topic,
    TransportError,
    Unsendable,
)
from runtime.storage import Guard, MissingTable, Statement, Superseded
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import FakeAuth, RecordingReceiver, eventually
from tests.runtime.test_public_names import ARGUMENTS, PACKAGES
from transports.memory import MemoryNetwork, MemoryTransport

parlour = Contract("parlour")


@parlour.message
class Fail(Request[None]):
    """Raises the error with this name."""

    error: str


@parlour.message
class WhoAmI(Request[str]):
    """Returns the id of the user."""


@parlour.message
class Enough(ServiceError):
    """There has been enough."""

    code, status = "enough", 409
    left: int


class Item(Struct):
    number: int
    kind: Literal["glance"]


class Items(Struct):
    items: tuple[Item, ...]
    last: int


@parlour.message
class Glanced(Request[Items]):
    """Lists the glances after a number."""

    after: int | None = None


@parlour.message(key="user", live=Glanced)
class Glance(Signal):
    user: str


class Parlour(Service):
    contract = parlour

    @handles(allow=ANYONE, raises=(Enough,))
    async def fail(self, message: Fail, ctx: Context) -> None:
        raise error_named(message.error)

    @handles(allow=roles("rider") | services("clerk"), http="GET /parlour/me")
    async def who_am_i(self, message: WhoAmI, ctx: Context) -> str:
        assert ctx.identity is None or isinstance(ctx.identity, Identity)
        return ctx.caller if ctx.identity is None else ctx.user.subject

    @handles(allow=ANYONE, http="GET /parlour/glances")
    async def glanced(self, message: Glanced, ctx: Context) -> Items:
        return Items((), 0)


def error_named(name: str) -> ServiceError:
    """Return an instance of a public error."""
    if name == "Enough":
        return Enough(3)
    error = getattr(runtime, name)(*(ARGUMENTS[name](Path()) if name in ARGUMENTS else ()))
    assert isinstance(error, ServiceError)
    return error


ERRORS = [
    name
    for name in runtime.__all__
    if isinstance(found := getattr(runtime, name), type) and issubclass(found, ServiceError) and found is not ServiceError
]


@asynccontextmanager
async def client(
    *, transport: type[MemoryTransport] = MemoryTransport, token: str | None = None
) -> AsyncGenerator[Context, None]:
    """Yield a context on another node than the parlour's."""
    network = MemoryNetwork()
    settings = NodeSettings(tokens=TokenSettings(refresh_seconds=0.1))
    async with Node([FakeAuth, Parlour], MemoryTransport(network), settings=settings), Node([], transport(network)) as node:
        await node.registry.wait_for("parlour")
        yield node.client("clerk" if token is None else "other", (parlour,), token=token)


@pytest.mark.parametrize("name", [*ERRORS, "Enough"])
async def test_an_error_arrives_as_it_was_raised(name: str) -> None:
    raised = error_named(name)
    async with client() as ctx:
        with pytest.raises(type(raised)) as caught:
            await ctx.request(Fail(name))
    assert type(caught.value) is type(raised)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == (raised.code, raised.status, raised.retryable)
    assert str(caught.value) == str(raised)


async def test_who_may_call() -> None:
    async with client() as ctx:
        assert await ctx.request(WhoAmI()) == "clerk"
    for token, expected in (
        (FakeAuth.token("u1", "rider"), None),
        (FakeAuth.token("u2", "operator"), Forbidden),
        ("x", Unauthenticated),
    ):
        async with client(token=token) as ctx:
            if expected is None:
                assert await ctx.request(WhoAmI()) == "u1"
            else:
                with pytest.raises(expected):
                    await ctx.request(WhoAmI())
    assert Allow(roles=("rider",), services=("clerk",)) == roles("rider") | services("clerk")
    assert SERVICES != ANYONE


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PeerUnreachable, Unreachable),
        (TransportError, Unreachable),
        (LinkLost, InstanceLost),
        (Unsendable, Invalid),
        (TooLarge, Invalid),
    ],
)
async def test_what_a_transport_raises_decides_what_the_caller_learns(
    raised: type[TransportError], expected: type[ServiceError]
) -> None:
    class Failing(MemoryTransport):
        def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
            if envelope.kind == "request":
                raise raised("no")
            return super().unicast_now(to, envelope, sender)

    async with client(transport=Failing) as ctx:
        with pytest.raises(expected):
            await ctx.request(Fail("Enough"), timeout=0.05)


async def test_a_manifest_describes_the_service() -> None:
    network, receiver = MemoryNetwork(), RecordingReceiver()
    assert isinstance(receiver, Receiver)
    watcher: Transport = MemoryTransport(network)
    assert watcher.capabilities == Capabilities(signals=True, ordered=True, duplicates=False, authenticates=True)
    await watcher.open("watcher", receiver)
    async with Node([Parlour], MemoryTransport(network)) as node:
        await watcher.watch("parlour")
        await eventually(lambda: receiver.members, "the instance is reported")
        manifest = receiver.members[Address("parlour", node.id)]
        assert isinstance(manifest, Manifest)
        requests: dict[str, RequestInfo] = {info.name: info for info in manifest.requests}
        assert requests["parlour.WhoAmI"].allow == Allow(roles=("rider",), services=("clerk",))
        binding = requests["parlour.WhoAmI"].http
        assert isinstance(binding, HttpBinding)
        assert (binding.method, binding.path, binding.status) == ("GET", "/parlour/me", 200)
        (error,) = requests["parlour.Fail"].errors
        assert isinstance(error, ErrorInfo)
        assert (error.code, error.status, error.title) == ("parlour.enough", 409, "There has been enough")
        assert manifest.live == LiveInfo("Glance", "parlour.Glanced")
        ctx = node.client("parlour", ())
        topic = Topic("signal", "parlour", "Glance", "ada")
        await watcher.subscribe(topic, "watcher", broadcast=True)
        for user in ("ada", "eve"):
            await ctx.publish(Glance(user))
        await eventually(lambda: receiver.envelopes, "the signal with the key of the topic arrives")
        ((envelope, to),) = receiver.envelopes
        assert (envelope.kind, envelope.signal_key, to) == ("signal", "ada", "watcher")
        assert set(typing.get_args(EnvelopeKind)) >= {"request", "reply", "error", "cancel", "signal", "head"}
    await watcher.close()


async def test_the_parameters_of_a_rest_request_travel_unparsed() -> None:
    params: Params = (("after", "3"),)
    envelope = Envelope("request", "1", "parlour.Glanced", b"", params=params)
    async with Node([Parlour], MemoryTransport()) as node:
        endpoint = node.caller.local["parlour"]["parlour.Glanced"]
        assert endpoint.message(envelope) == Glanced(3)


async def test_a_registry_picks_among_its_members() -> None:
    clock = Clock()
    registry = Registry(clock, Random(clock, seed=1), lambda service: None)
    manifests = [Manifest("wallet", f"node-{number}", str(number)) for number in range(2)]
    assert all(registry.join(manifest) for manifest in manifests)
    found = registry.pick("wallet", 0.0)
    assert isinstance(found, Member)
    assert found.manifest in manifests
    registry.leave(found.address, lost=False)
    assert registry.pick("wallet", 0.0) is not found


async def test_a_head_is_a_hint_that_names_a_position() -> None:
    import msgspec

    assert msgspec.json.decode(msgspec.json.encode(Head("epoch", 7)), type=Head) == Head("epoch", 7)


async def test_a_database_tells_wrong_statements_from_lost_races(tmp_path: Path) -> None:
    database: Database = SqliteDatabase(tmp_path / "x.sqlite", durable=False)
    await database.open()
    try:
        await database.script("CREATE TABLE t (n INTEGER UNIQUE)")
        final: Statement = ("INSERT INTO t VALUES ($1)", (2,))
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES ($1)", 1)
            tx.final.append(final)
        assert [row["n"] for row in await database.fetch("SELECT n FROM t ORDER BY n")] == [1, 2]
        for sql, expected in (
            ("INSERT INTO t VALUES (1)", ConstraintError),
            ("INSERT INTO u VALUES (1)", MissingTable),
            ("INSRT INTO t VALUES (1)", StatementError),
        ):
            with pytest.raises(expected):
                await database.execute(sql)
        with pytest.raises(Superseded):
            async with database.transaction(Guard("UPDATE t SET n = 3 WHERE n = $1", (9,))) as tx:
                await tx.execute("INSERT INTO t VALUES (4)")
        assert issubclass(StatementError, DatabaseError)
        assert len(await database.fetch("SELECT n FROM t")) == 2
    finally:
        await database.close()


async def test_an_error_of_an_unknown_contract_keeps_its_fields() -> None:
    network = MemoryNetwork()

    class Between(Service):
        contract = Contract("between")

    async with Node([Parlour], MemoryTransport(network)), Node([Between], MemoryTransport(network)) as node:
        await node.registry.wait_for("parlour")
        ctx = node.client("between", (Contract("parlour"),))
        with pytest.raises(RemoteError) as caught:
            await ctx.request(Fail("Enough"))
        assert (caught.value.code, caught.value.fields) == ("enough", {"left": 3})


def test_random_values_repeat_with_their_seed() -> None:
    clock = ManualClock()
    assert Random(clock, seed=1).uuid7() == Random(clock, seed=1).uuid7()


def test_every_public_name_is_used_by_a_test() -> None:
    """Importing a name, or constructing it in a table, is not enough: a test has to do something with it."""
    public = {name for package in PACKAGES for name in importlib.import_module(package).__all__}
    used: set[str] = set()
    tests = Path(__file__).parent.parent
    for file in (*(tests / "runtime").rglob("*.py"), *(tests / "conformance").glob("*.py")):
        if file.name != "test_public_names.py":
            used |= {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    by_their_class = set(ERRORS)  # in test_an_error_arrives_as_it_was_raised
    assert sorted(public - used - by_their_class) == []
