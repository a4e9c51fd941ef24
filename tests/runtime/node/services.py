"""Two services that record when they start and stop: for the tests of nodes and supervisors."""

import asyncio

from runtime import ANYONE, Context, Contract, Request, Service, handles

base = Contract("base")
upper = Contract("upper")


@base.message
class Poke(Request[int]):
    """Takes `seconds`, and returns how many pokes there have been."""

    seconds: float = 0.0


@upper.message
class Lift(Request[int]):
    """Pokes the base, which takes 50 ms."""


LOG: list[str] = []


class Base(Service):
    contract = base

    def __init__(self) -> None:
        self.pokes = 0

    async def on_start(self, ctx: Context) -> None:
        LOG.append("base started")

    async def on_stop(self, ctx: Context) -> None:
        LOG.append("base stopped")

    @handles(allow=ANYONE)
    async def poke(self, message: Poke, ctx: Context) -> int:
        self.pokes += 1
        await asyncio.sleep(message.seconds)
        return self.pokes


class Upper(Service):
    contract = upper
    calls = (base,)

    async def on_start(self, ctx: Context) -> None:
        LOG.append(f"upper started at {await ctx.request(Poke())}")

    async def on_stop(self, ctx: Context) -> None:
        LOG.append(f"upper stopped at {await ctx.request(Poke())}")

    @handles(allow=ANYONE)
    async def lift(self, message: Lift, ctx: Context) -> int:
        return await ctx.request(Poke(0.05))
