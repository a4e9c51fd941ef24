from runtime import Context, Service, ServiceError, Struct, Transaction, every, handles, roles, subscribes

from orders.messages import GetOrder, Order, OrderExpired, OrderPlaced, PlaceOrder, orders
from wallet.messages import Hold, Paid, TooLittle, wallet


class OrdersSettings(Struct):
    pay_within: float = 900
    """Seconds until an order that nobody has paid expires."""


@orders.message
class NoOrder(ServiceError):
    """You have no such order."""

    code, status = "no-order", 404


class Orders(Service):
    contract = orders
    calls = (wallet,)
    Settings = OrdersSettings
    settings: OrdersSettings

    @handles(http="POST /orders", status=201, allow=roles("customer"), once=True, raises=(TooLittle,))
    async def place(self, message: PlaceOrder, ctx: Context, tx: Transaction) -> Order:
        await ctx.request(Hold(ctx.user.subject, message.cents), timeout=10)
        order = Order(self.random.uuid7_text(), message.item, "placed")
        await tx.execute(
            "INSERT INTO orders VALUES ($1, $2, $3, $4, $5)",
            order.id,
            ctx.user.subject,
            order.item,
            order.state,
            self.clock.steady(),
        )
        await tx.publish(OrderPlaced(order.id, order.item))
        return order

    @handles(http="GET /orders/{id}", allow=roles("customer", "support"), raises=(NoOrder,))
    async def get(self, message: GetOrder, ctx: Context) -> Order:
        row = await self.db.fetch_one("SELECT id, user_id, item, state FROM orders WHERE id = $1", message.id)
        if row is None or (row["user_id"] != ctx.user.subject and "support" not in ctx.user.roles):
            raise NoOrder
        return Order(str(row["id"]), str(row["item"]), str(row["state"]))

    @subscribes
    async def on_paid(self, event: Paid, ctx: Context, tx: Transaction) -> None:
        await tx.execute("UPDATE orders SET state = 'paid' WHERE id = $1", event.order_id)

    @every(seconds=60)
    async def expire(self, ctx: Context) -> None:
        before = self.clock.steady() - self.settings.pay_within
        async with self.db.transaction() as tx:
            for row in await tx.fetch("SELECT id FROM orders WHERE state = 'placed' AND placed < $1", before):
                await tx.execute("UPDATE orders SET state = 'expired' WHERE id = $1", row["id"])
                await tx.publish(OrderExpired(str(row["id"])))
