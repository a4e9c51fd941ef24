"""Uses of the API. Type checkers must refuse the lines marked with `refused`, and no others."""

from runtime import ANYONE, Context, Contract, Event, Request, Service, Signal, Struct, Transaction, handles

shop = Contract("shop")


class Item(Struct):
    id: str


@shop.message
class Buy(Request[Item]):
    id: str


@shop.message
class Sold(Event):
    id: str


@shop.message
class Bell(Signal):
    id: str


class Shop(Service):
    contract = shop

    @handles(allow=ANYONE)
    async def buy(self, message: Buy, ctx: Context, tx: Transaction) -> Item:
        item: Item = await ctx.request(Buy("a"))
        number: int = await ctx.request(Buy("a"))  # refused
        await ctx.request(Buy(5))  # refused
        await ctx.request(Buy())  # refused
        await ctx.request(Buy("a", colour="red"))  # refused
        await ctx.request(Sold("a"))  # refused
        await ctx.request("a")  # refused
        await ctx.publish(Bell("a"))
        await ctx.publish(Sold("a"))  # refused
        await ctx.publish(message)  # refused
        await tx.publish(Sold("a"))
        await tx.publish(Bell("a"))  # refused
        message.id = "b"  # refused
        item.id = "b"  # refused
        print(item.colour)  # refused
        return Item(item.id + str(number))

    @handles(allow="rider")  # refused
    async def look(self, message: Buy, ctx: Context) -> Item:
        return await ctx.request(message, timeout="soon")  # refused
