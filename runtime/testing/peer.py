"""The service and the receiver that the cases of the conformance kit talk to."""

import asyncio
from typing import ClassVar

from runtime.contract.access import ANYONE, SERVICES
from runtime.contract.errors import ServiceError
from runtime.contract.messages import Contract, Request, Signal, Struct
from runtime.network.envelope import Address, Envelope
from runtime.network.manifest import Manifest
from runtime.network.transport import Receiver, TransportError
from runtime.service.context import Context
from runtime.service.handlers import handles, subscribes
from runtime.service.service import Service

kit: Contract = Contract("conformance")


class Echoed(Struct):
    """A text, who sent it, the node that answered, and the address of the client outside for whom it was sent."""

    text: str
    caller: str
    node: str
    client: str | None = None


@kit.message
class Echo(Request[Echoed]):
    """Return the text."""

    text: str


@kit.message
class Hang(Request[None]):
    """Never reply. The cancellation is recorded under the name."""

    name: str


@kit.message
class Tick(Signal):
    """A signal for one instance of each subscribing service."""

    number: int


@kit.message
class Toll(Signal, kw_only=True):
    """A signal for every instance."""

    number: int


@kit.message
class Refused(ServiceError):
    """An error with fields."""

    code: ClassVar[str] = "refused"
    status: ClassVar[int] = 409
    reason: str


@kit.message
class Refuse(Request[None]):
    """Raise `Refused`."""

    reason: str


class Peer(Service):
    """The service that the cases talk to. Its lists record what happened to it."""

    contract = kit
    concurrency = 2000

    def __init__(self, node: str = "") -> None:
        self.node = node
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.ticks: list[int] = []
        self.tolls: list[int] = []

    @handles(allow=ANYONE, idempotent=True)
    async def echo(self, message: Echo, ctx: Context) -> Echoed:
        """Return the text."""
        return Echoed(message.text, ctx.caller, self.node, ctx.client_address)

    @handles(allow=SERVICES)
    async def hang(self, message: Hang, ctx: Context) -> None:
        """Wait for the cancellation."""
        self.started.append(message.name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.name)
            raise

    @handles(allow=ANYONE, raises=(Refused,))
    async def refuse(self, message: Refuse, ctx: Context) -> None:
        """Raise `Refused`."""
        raise Refused(message.reason)

    @subscribes
    async def on_tick(self, signal: Tick, ctx: Context) -> None:
        """Record the signal."""
        self.ticks.append(signal.number)

    @subscribes(broadcast=True)
    async def on_toll(self, signal: Toll, ctx: Context) -> None:
        """Record the signal."""
        self.tolls.append(signal.number)


class Narrow(Peer):
    """A peer that handles one message, and lets one wait."""

    concurrency = 1
    capacity = 1


class RecordingReceiver(Receiver):
    """A receiver without a node that records everything its transport reports."""

    def __init__(self) -> None:
        self.envelopes: list[tuple[Envelope, str]] = []
        self.members: dict[Address, Manifest] = {}
        self.loads: dict[Address, int] = {}
        self.departed: list[tuple[Address, bool]] = []
        self.silent: list[Address] = []
        self.cuts: int = 0
        self.garbage: int = 0
        self.old: int = 0
        self.failure: TransportError | None = None

    def load(self, service: str) -> int:
        return 7

    def receive(self, envelope: Envelope, to: str) -> None:
        self.envelopes.append((envelope, to))

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self.members[manifest.address] = manifest
        self.loads[manifest.address] = load

    def suspected(self, address: Address) -> None:
        self.silent.append(address)

    def left(self, address: Address, *, lost: bool) -> None:
        self.members.pop(address, None)
        self.departed.append((address, lost))

    def cut(self) -> None:
        self.cuts += 1

    def unreadable(self) -> None:
        self.garbage += 1

    def retained(self) -> None:
        self.old += 1

    def failed(self, error: TransportError) -> None:
        self.failure = error
