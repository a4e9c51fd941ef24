"""A shop that calls a bank: services for the tests of requests between services."""

import asyncio

import anyio

from runtime import ANYONE, SERVICES, Context, Contract, Request, Service, ServiceError, Struct, handles, services

shop = Contract("shop")
bank = Contract("bank")
courier = Contract("courier")


class Parcel(Struct):
    id: str
    tags: tuple[str, ...] = ()
    inner: "Parcel | None" = None


@shop.message
class Pack(Request[Parcel]):
    parcel: Parcel


@shop.message
class Buy(Request[float]):
    """Makes the bank handle `Pay`, and replies with the seconds that the bank had left."""

    behaviour: str = ""
    timeout: float | None = None


@shop.message
class Sleep(Request[str]):
    """Waits for `seconds` in the way that `how` names."""

    seconds: float
    how: str = "plain"


@shop.message
class Crash(Request[None]):
    """Fails with an error that is not a ServiceError."""


@shop.message
class GetCaller(Request[str]):
    """Returns the caller as the callee sees it."""


@shop.message
class CourierOnly(Request[None]):
    """Allowed for the courier only."""


@shop.message
class CallUndeclared(Request[None]):
    """Calls a service that is not in `calls`."""


@bank.message
class Pay(Request[float]):
    behaviour: str = ""


@bank.message
class Broke(ServiceError):
    """There is no money."""

    code, status = "broke", 402
    missing_cents: int
    hints: tuple[str, ...] = ()


class Bank(Service):
    contract = bank
    calls = (shop,)

    def __init__(self) -> None:
        self.history: list[str] = []

    @handles(allow=SERVICES, raises=(Broke,))
    async def pay(self, message: Pay, ctx: Context) -> float:
        self.history.append("started")
        try:
            if message.behaviour == "broke":
                raise Broke(5, ("save",))
            if message.behaviour == "hang":
                await asyncio.Event().wait()
            return ctx.remaining
        except asyncio.CancelledError:
            self.history.append("cancelled")
            raise


class Shop(Service):
    contract = shop
    calls = (bank,)

    @handles(allow=ANYONE)
    async def pack(self, message: Pack, ctx: Context) -> Parcel:
        return Parcel("outer", ("packed",), message.parcel)

    def __init__(self) -> None:
        self.bought = 0

    @handles(allow=ANYONE)
    async def buy(self, message: Buy, ctx: Context) -> float:
        self.bought += 1
        return await ctx.request(Pay(message.behaviour), timeout=message.timeout)

    @handles(allow=ANYONE)
    async def sleep(self, message: Sleep, ctx: Context) -> str:
        match message.how:
            case "asyncio timeout":
                try:
                    async with asyncio.timeout(message.seconds):
                        await asyncio.Event().wait()
                except TimeoutError:
                    return "timed out"
            case "anyio scope":
                with anyio.move_on_after(message.seconds) as scope:
                    await anyio.sleep_forever()
                return "moved on" if scope.cancelled_caught else "?"
            case "task group":
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(asyncio.sleep(message.seconds, "a"))
                    second = group.create_task(asyncio.sleep(message.seconds / 2, "b"))
                return first.result() + second.result()
            case "anyio task group":
                finished: list[str] = []

                async def finish(name: str) -> None:
                    await anyio.sleep(message.seconds)
                    finished.append(name)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(finish, "a")
                    tasks.start_soon(finish, "b")
                return "".join(sorted(finished))
            case "a failing task group":
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(asyncio.sleep(60))
                        group.create_task(_fail())
                except ExceptionGroup as failures:
                    return "failed" if failures.subgroup(ValueError) else "?"
            case "requests in a task group":
                async with asyncio.TaskGroup() as group:
                    requests = [group.create_task(ctx.request(Pay())) for _ in range(10)]
                return str(len([task.result() for task in requests]))
            case _:
                await asyncio.sleep(message.seconds)
        return "slept"

    @handles(allow=ANYONE)
    async def crash(self, message: Crash, ctx: Context) -> None:
        await asyncio.sleep(0)
        raise KeyError("a secret of the implementation")

    @handles(allow=SERVICES)
    async def get_caller(self, message: GetCaller, ctx: Context) -> str:
        return ctx.caller

    @handles(allow=services("courier"))
    async def courier_only(self, message: CourierOnly, ctx: Context) -> None:
        return None

    @handles(allow=ANYONE)
    async def call_undeclared(self, message: CallUndeclared, ctx: Context) -> None:
        await ctx.request(Deliver())


@courier.message
class Deliver(Request[None]):
    pass


async def _fail() -> None:
    await asyncio.sleep(0)
    raise ValueError
