"""What a handler learns from its context about the user of a message."""

import pytest

from runtime import ANYONE, SERVICES, Context, Contract, Request, Service, Unauthenticated, UsageError, every, handles, services
from runtime.testing import FakeAuth, eventually
from tests.topology import Topology

people = Contract("people")


@people.message
class WhoAmI(Request[str]):
    """Return the user's id."""


@people.message
class WhoAmIForTest(Request[str]):
    """Return the user's id, to one service only."""


@people.message
class WhoIsAnyone(Request[str]):
    """Return the user's id, whoever asks."""


class People(Service):
    contract = people
    error: Exception | None = None

    @handles(allow=SERVICES)
    async def who(self, message: WhoAmI, ctx: Context) -> str:
        return ctx.user.subject

    @handles(allow=services("test"))
    async def who_for_test(self, message: WhoAmIForTest, ctx: Context) -> str:
        return ctx.user.subject

    @handles(allow=ANYONE)
    async def anyone(self, message: WhoIsAnyone, ctx: Context) -> str:
        return ctx.user.subject

    @every(seconds=0.01)
    async def tick(self, ctx: Context) -> None:
        if self.error is None:
            try:
                _ = ctx.user
            except UsageError as error:
                self.error = error


async def test_a_request_that_needs_a_user_is_unauthenticated_without_one(topology: Topology) -> None:
    await topology.start(FakeAuth, People)
    ctx = await topology.client(people)
    for message in (WhoAmI(), WhoAmIForTest(), WhoIsAnyone()):
        with pytest.raises(Unauthenticated):
            await ctx.request(message)
    assert sum(node.metrics.value("incidents_total", service="people") for node in topology.nodes) == 0
    known = await topology.client(people, token=FakeAuth.token("u1", "rider"))
    for message in (WhoAmI(), WhoAmIForTest(), WhoIsAnyone()):
        assert await known.request(message) == "u1"


async def test_asking_for_a_user_where_there_never_is_one_is_a_mistake_in_the_code(one_node: Topology) -> None:
    await one_node.start(People)
    await eventually(lambda: one_node.service(People).error is not None, "the timer has run")
