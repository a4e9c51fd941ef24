"""Two releases of a service at once: only instances that have a request are asked for it."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import msgspec
import pytest

from runtime import DeadlineExceeded, NoInstance, ServiceError
from runtime.contract.errors import ErrorData
from runtime.network import Address, Envelope
from runtime.testing import RecordingReceiver, eventually
from tests.runtime.execution.releases import (
    TRANSPORTS,
    CountNew,
    Deployment,
    Discard,
    Find,
    NewShelf,
    OldShelf,
    Release,
    Reserve,
    Rung,
    Struck,
    deployment,
    new,
    old,
)


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_deployment_and_its_roll_back_ask_only_instances_that_have_a_request(kind: str, tmp_path: Path) -> None:
    async with deployment(kind, tmp_path) as releases:
        await releases.start(OldShelf)
        with pytest.raises(NoInstance) as caught:
            await releases.client(new).request(Reserve("x"), timeout=0.2)
        assert caught.value.retryable
        assert not caught.value.maybe_delivered
        await releases.start(NewShelf)
        assert await releases.answers(Reserve("x"), new) == {"new x"}
        assert await releases.answers(Discard(), old) == {"old discard"}
        if kind == "memory":
            found: set[str] = set()

            async def both_answer() -> bool:
                found.update(await releases.answers(Find("x"), old))
                return found == {"old x", "new x"}

            await eventually(both_answer, "both answer what both have")
        await releases.stop(NewShelf)
        waiting = asyncio.create_task(releases.client(new).request(Reserve("x"), timeout=0.2))
        assert await releases.answers(Discard(), old) == {"old discard"}, "the old release continues"
        with pytest.raises(NoInstance):
            await waiting


async def test_it_does_not_matter_which_release_joins_first(tmp_path: Path) -> None:
    async with deployment("memory", tmp_path) as releases:
        await releases.start(NewShelf, OldShelf, NewShelf, OldShelf)
        assert await releases.answers(Reserve("x"), new, 40) == {"new x"}
        assert await releases.answers(Discard(), old, 40) == {"old discard"}


async def test_a_request_waits_for_the_one_instance_that_has_it_to_come_back(tmp_path: Path) -> None:
    async with deployment("memory", tmp_path) as releases:
        await releases.start(OldShelf, NewShelf)
        await releases.stop(NewShelf)
        waiting = asyncio.create_task(releases.client(new).request(Reserve("x"), timeout=10))
        await asyncio.sleep(0)
        assert not waiting.done()
        await releases.start(OldShelf)
        assert not waiting.done(), "another instance of the old release does not help"
        await releases.start(NewShelf)
        assert await waiting == "new x"


async def test_a_request_that_may_have_run_is_repeated_only_where_it_is_idempotent(tmp_path: Path) -> None:
    """It is in the new release, and was not in the old one. After the new instance was lost, the old one may not be asked."""
    async with deployment("memory", tmp_path) as releases:
        await releases.start(OldShelf, NewShelf)
        (shelf,) = (shelf for shelf in releases.shelves if isinstance(shelf, NewShelf))
        shelf.fails = True
        for member in releases.caller.registry.members("shelf"):
            if member.manifest.version == OldShelf.version:
                releases.caller.registry.suspect(member.address)  # so that the new one is asked first
        with pytest.raises(DeadlineExceeded):
            await releases.client(new).request(CountNew(), timeout=0.3)
        assert shelf.counted > 1
        shelf.fails, shelf.hangs = False, True
        waiting = asyncio.create_task(releases.client(new).request(CountNew(), timeout=0.3))
        counted = shelf.counted
        await eventually(lambda: shelf.counted > counted, "the new instance has the request")
        releases.caller.inbound.left(releases.address_of(shelf), lost=True)
        with pytest.raises(ServiceError) as caught:
            await waiting
        assert caught.value.maybe_delivered
        assert sum(shelf.counted for shelf in releases.shelves if isinstance(shelf, OldShelf)) == 0


async def test_an_instance_that_does_not_have_what_it_announced_is_passed_over(tmp_path: Path) -> None:
    """A node may be replaced by one of another version before its peers notice."""
    async with deployment("memory", tmp_path) as releases:
        await releases.start(OldShelf, NewShelf)
        members = releases.caller.registry.members("shelf")
        (newer,) = (member for member in members if member.manifest.version == NewShelf.version)
        for member in members:
            member.requests = newer.requests
        assert await releases.answers(Reserve("x"), new, 40) == {"new x"}
        await releases.stop(NewShelf)
        with pytest.raises(NoInstance):
            await releases.client(new).request(Reserve("x"), timeout=5)


async def test_a_client_without_a_registry_is_told_to_try_again(tmp_path: Path) -> None:
    """The network chooses an instance for it (anycast), which may be one of the old release."""
    async with deployment("memory", tmp_path) as releases:
        await releases.start(OldShelf, NewShelf)
        receiver, transport = RecordingReceiver(), releases.transport()
        await transport.open("device", receiver)
        await transport.listen("caller")
        answers: set[str] = set()

        async def ask(request: str) -> set[str]:
            envelope = Envelope(
                "request",
                releases.caller.environment.random.hex(16),
                request,
                b'{"title":"x"}',
                reply_to=Address("caller", "device"),
            )
            await transport.anycast("shelf", envelope, "caller")
            answers.update(
                reply.subject if reply.kind == "reply" else msgspec.json.decode(bytes(reply.body), type=ErrorData).code
                for reply, _ in receiver.envelopes
            )
            return answers

        await eventually(lambda: _includes(ask("shelf.Reserve"), {"shelf.Reserve", "no-instance"}), "both have answered")
        assert answers == {"shelf.Reserve", "no-instance"}
        await eventually(lambda: _includes(ask("shelf.Nothing"), {"unknown-request"}), "nobody has it")
        await transport.close()


async def _includes(answers: Awaitable[set[str]], expected: set[str]) -> bool:
    return expected <= await answers


@pytest.mark.parametrize("kind", ["memory", "mqtt", "http+mqtt"])
async def test_a_signal_reaches_the_instances_that_subscribe_to_it(kind: str, tmp_path: Path) -> None:
    async with deployment(kind, tmp_path) as releases:
        await _check_signals(releases)


async def _check_signals(releases: Deployment) -> None:
    await releases.start(OldShelf, NewShelf)
    ctx = releases.caller.client("bell", ())
    count = 0

    def heard(name: str, release: Release) -> int:
        return sum(shelf.heard.count(name) for shelf in releases.shelves if isinstance(shelf, release))

    async def struck() -> bool:
        nonlocal count
        await ctx.publish(Struck())
        count += 1
        return heard("struck", NewShelf) >= 10

    await eventually(struck, "the new instance hears what only it subscribes to")
    await eventually(lambda: heard("struck", NewShelf) == count, "and all of it")
    for _ in range(40):
        await ctx.publish(Rung())
    await eventually(lambda: heard("rung", OldShelf) + heard("rung", NewShelf) == 40, "each is heard once")
    assert heard("struck", OldShelf) == 0
