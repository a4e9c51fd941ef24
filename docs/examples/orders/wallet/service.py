from runtime import SERVICES, Context, Service, Transaction, handles

from wallet.messages import Held, Hold, Paid, wallet


class Wallet(Service):
    contract = wallet

    @handles(allow=SERVICES)
    async def hold(self, message: Hold, ctx: Context, tx: Transaction) -> Held:
        await tx.publish(Paid(f"order of {message.user}"))
        return Held(ctx.message_id)
