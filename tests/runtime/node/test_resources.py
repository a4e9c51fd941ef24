"""What a service opens: in order before `on_start`, closed in reverse after `on_stop`, whatever ends the instance."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from runtime import ANYONE, Context, Contract, DefinitionError, Node, Request, Service, UsageError, every, handles, resource
from runtime.testing import eventually, replaced
from transports.memory import MemoryTransport

LOG: list[str] = []
shop = Contract("shop")


@shop.message
class Which(Request[str]):
    """Which provider is used?"""


class Shop(Service):
    contract = shop

    @resource
    async def provider(self) -> AsyncGenerator[str, None]:
        """The one that sells."""
        LOG.append("provider opens")
        opened_by = asyncio.current_task()
        try:
            yield "the provider"
        finally:
            assert asyncio.current_task() is opened_by, "anyio's scopes need the same task"
            LOG.append("provider closes")

    @resource
    async def account(self) -> AsyncGenerator[str, None]:
        LOG.append("account opens")
        yield f"account at {self.provider}"
        LOG.append("account closes")

    async def on_start(self, ctx: Context) -> None:
        LOG.append(f"started with {self.account}")

    async def on_stop(self, ctx: Context) -> None:
        LOG.append(f"stopped with {self.account}")

    @handles(allow=ANYONE)
    async def which(self, message: Which, ctx: Context) -> str:
        return self.provider


@pytest.fixture(autouse=True)
def log() -> None:
    LOG.clear()


async def which(node: Node) -> str:
    return await node.client("test", (shop,)).request(Which())


async def test_resources_are_open_from_before_the_start_until_after_the_stop() -> None:
    async with Node([Shop], MemoryTransport()) as node:
        assert await which(node) == "the provider"
    assert LOG == [
        "provider opens", "account opens", "started with account at the provider",
        "stopped with account at the provider", "account closes", "provider closes",
    ]  # fmt: skip
    assert Shop.provider.__doc__ == "The one that sells."


async def test_each_instance_opens_its_own_after_a_crash() -> None:
    class Crashing(Shop):
        @every(seconds=0.01)
        async def crash_once(self, ctx: Context) -> None:
            if LOG.count("provider opens") == 1:
                raise RuntimeError("a crash")

    async with Node([Crashing], MemoryTransport()) as node:
        await eventually(lambda: LOG.count("account opens") == 2, "the second instance has opened its own")
        await eventually(lambda: "crash" not in repr(node) and LOG[-1].startswith("started"), "it has started")
        assert LOG.count("provider closes") == 1
    assert LOG.count("provider closes") == LOG.count("account closes") == 2


async def test_what_was_opened_is_closed_if_the_next_one_or_the_start_fails() -> None:
    class Failing(Shop):
        failures = 1

        @resource
        async def line(self) -> AsyncGenerator[int, None]:
            if Failing.failures:
                Failing.failures -= 1
                raise ConnectionError("nobody answers")
            yield 1

    async with Node([Failing], MemoryTransport()) as node:
        assert await which(node) == "the provider"
        assert LOG.count("provider closes") == LOG.count("provider opens") - 1 == 1


async def test_a_stop_interrupts_the_opening() -> None:
    class Endless(Shop):
        @resource
        async def line(self) -> AsyncGenerator[int, None]:
            LOG.append("line opens")
            await asyncio.Event().wait()
            yield 1

    node = Node([Endless], MemoryTransport())
    starting = asyncio.create_task(node.__aenter__())
    await eventually(lambda: "line opens" in LOG, "the line is being opened")
    await node.stop()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert LOG[-2:] == ["account closes", "provider closes"]


async def test_a_timeout_of_a_resource_is_a_failure_of_its_own() -> None:
    class Slow(Shop):
        failures = 1

        @resource
        async def line(self) -> AsyncGenerator[int, None]:
            if Slow.failures:
                Slow.failures -= 1
                raise TimeoutError("it takes too long")
            yield 1

    async with Node([Slow], MemoryTransport()) as node:
        assert await which(node) == "the provider"
        assert node.metrics.value("instance_restarts_total", service="shop") == 1


async def test_a_function_can_replace_a_resource() -> None:
    class Calls(Shop):
        @resource
        async def ask(self) -> AsyncGenerator[Callable[[str], str], None]:
            yield str.upper

        @handles(allow=ANYONE)
        async def which(self, message: Which, ctx: Context) -> str:
            return self.ask("x")

    for fake, answer in ((None, "X"), (lambda text: f"fake {text}", "fake x"), (str.title, "X")):
        async with Node([Calls if fake is None else replaced(Calls, ask=fake)], MemoryTransport()) as node:
            assert await which(node) == answer


def test_a_function_that_opens_nothing_is_no_resource() -> None:
    async def provider(self: Shop) -> int:
        return 1

    with pytest.raises(DefinitionError, match="provider: @resource: expected `async def` with `yield`"):
        resource(provider)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake under test


def test_a_resource_is_not_there_before_the_service_runs() -> None:
    with pytest.raises(UsageError, match=r"Shop\.provider is open only from `on_start` to `on_stop`"):
        _ = Shop().provider


async def test_a_test_replaces_a_resource() -> None:
    async with Node([replaced(Shop, provider="a fake")], MemoryTransport()) as node:
        assert await which(node) == "a fake"
    assert LOG == ["account opens", "started with account at a fake", "stopped with account at a fake", "account closes"]
    with pytest.raises(DefinitionError, match="Shop has no resource 'provder': it has provider, account"):
        replaced(Shop, provder="a fake")
