"""Who may ask: users by any of their roles or scopes, and anybody, with a user who is known if a valid token came along."""

from collections.abc import Awaitable, Callable

import pytest

from runtime import (
    ANYONE,
    SERVICES,
    Context,
    Contract,
    DefinitionError,
    Forbidden,
    Request,
    Service,
    Transaction,
    Unauthenticated,
    handles,
    roles,
    scopes,
)
from runtime.testing import FakeAuth
from tests.topology import Topology

press, desk = Contract("press"), Contract("desk")


@press.message
class Publish(Request[str]):
    """For editors and those with the scope."""


@press.message
class Read(Request[str]):
    """For everybody."""


@press.message
class Subscribe(Request[str]):
    """For everybody, once."""


@desk.message
class ReadForMe(Request[str]):
    """Read, by way of the desk."""


class Press(Service):
    contract = press

    @handles(http="POST /publications", allow=roles("editor", "owner") | scopes("press:write"))
    async def publish(self, message: Publish, ctx: Context) -> str:
        return f"{ctx.user.role} of {','.join(ctx.user.roles)} with {','.join(ctx.user.scopes)}"

    @handles(http="GET /publications", allow=ANYONE, idempotent=True)
    async def read(self, message: Read, ctx: Context) -> str:
        return "nobody" if ctx.identity is None else ctx.identity.subject

    @handles(allow=ANYONE, once=True)
    async def subscribe(self, message: Subscribe, ctx: Context, tx: Transaction) -> str:
        return "nobody" if ctx.identity is None else ctx.identity.subject


class Desk(Service):
    contract = desk
    calls = (press,)

    @handles(allow=SERVICES)
    async def read(self, message: ReadForMe, ctx: Context) -> str:
        return f"{await ctx.request(Read())}, {await ctx.request(Subscribe())}"


Ask = Callable[..., Awaitable[str]]


@pytest.fixture
async def ask(topology: Topology) -> Ask:
    """Makes a request with an access token."""
    await topology.start(FakeAuth, Press, Desk)

    async def ask(message: Request[str], token: str | None) -> str:
        return await (await topology.client(press, desk, token=token)).request(message)

    return ask


async def test_any_role_and_any_scope_of_a_user_counts(ask: Ask) -> None:
    assert await ask(Publish(), FakeAuth.token("u1", "rider", "editor")) == "rider of rider,editor with "
    assert await ask(Publish(), FakeAuth.token("u1", "owner")) == "owner of owner with "
    writer = FakeAuth.token("u1", "rider", scopes=("press:read", "press:write"))
    assert await ask(Publish(), writer) == "rider of rider with press:read,press:write"
    for refused in (
        FakeAuth.token("u1", "rider", "reader"),
        FakeAuth.token("u1", "rider", scopes=("press:read", "press", "editor")),
    ):
        with pytest.raises(Forbidden):
            await ask(Publish(), refused)
    with pytest.raises(Unauthenticated):
        await ask(Publish(), None)


async def test_a_request_for_anyone_knows_the_user_of_a_valid_token_and_refuses_others(ask: Ask) -> None:
    for message in (Read(), Subscribe()):
        assert await ask(message, None) == "nobody"
        assert await ask(message, FakeAuth.token("u1", "rider")) == "u1"
        for invalid in (FakeAuth.token("u1", "rider", seconds=-1), "nonsense"):
            with pytest.raises(Unauthenticated):
                await ask(message, invalid)


async def test_the_user_of_the_first_request_is_known_behind_another_service(ask: Ask) -> None:
    assert await ask(ReadForMe(), None) == "nobody, nobody"
    assert await ask(ReadForMe(), FakeAuth.token("u1", "rider")) == "u1, u1"


@pytest.mark.parametrize("wrong", ["", "two words", 'a"b', "a\\b", "ä"])
def test_a_scope_that_no_token_can_have_is_refused(wrong: str) -> None:
    with pytest.raises(DefinitionError, match="expected printable ASCII"):
        scopes(wrong)
    with pytest.raises(DefinitionError, match="at least one scope"):
        scopes()
