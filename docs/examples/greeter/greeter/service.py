from runtime import ANYONE, Context, Service, Transaction, handles

from greeter.messages import Greet, Greeted, Greeting, TooRude, greeter


class Greeter(Service):
    contract = greeter

    @handles(http="POST /greetings", status=201, allow=ANYONE, raises=(TooRude,))
    async def greet(self, message: Greet, ctx: Context, tx: Transaction) -> Greeting:
        if message.name == "Voldemort":
            raise TooRude(message.name)
        row = await tx.fetch_one(
            "INSERT INTO greetings (name, count) VALUES ($1, 1) "
            "ON CONFLICT (name) DO UPDATE SET count = greetings.count + 1 RETURNING count",
            message.name,
        )
        assert row is not None
        await tx.publish(Greeted(message.name))
        return Greeting(f"Hello, {message.name}!", row["count"])  # row, event, and reply commit together
