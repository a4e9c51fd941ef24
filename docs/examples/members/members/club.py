"""What the members have."""

from runtime import ANYONE, Context, Contract, Request, Service, handles, roles

club = Contract("club")


@club.message
class GetDoor(Request[str]):
    """Who is at the door?"""


@club.message
class GetBar(Request[str]):
    """Enter the bar."""


class Club(Service):
    contract = club

    @handles(http="GET /door", allow=ANYONE)
    async def door(self, message: GetDoor, ctx: Context) -> str:
        return "a stranger" if ctx.identity is None else ctx.identity.subject

    @handles(http="GET /bar", allow=roles("member", "owner"))
    async def bar(self, message: GetBar, ctx: Context) -> str:
        return f"Good evening, {ctx.user.subject}!"
