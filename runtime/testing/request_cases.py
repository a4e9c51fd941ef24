"""Conformance cases: requests, errors, deadlines, cancellation, and back-pressure."""

import asyncio
from typing import Any, ClassVar

from runtime.contract.errors import DeadlineExceeded, NoInstance, Overloaded, RemoteError
from runtime.contract.messages import Contract
from runtime.network.envelope import Address, Envelope
from runtime.service.service import Service
from runtime.testing.expectations import WAIT, ConformanceError, eventually, expect
from runtime.testing.kit import KitBase
from runtime.testing.peer import Echo, Hang, Narrow, Refuse, Refused, kit


class WithoutErrors(Service):
    """A service that does not import the kit's errors."""

    contract: ClassVar[Contract] = Contract("stranger")


class RequestCases(KitBase):
    """Requests between nodes."""

    async def case_request_and_reply(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo("hello"))).text == "hello", "the reply contains the text that was sent")

    async def case_caller_is_known(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo("?"))).caller == "asker", "the callee knows the calling service")

    async def case_address_of_the_client_arrives(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo("?"))).client is None, "there is no client where none was passed on")
            for address in ("203.0.113.7", "2001:db8:1:2::/64"):
                ctx.envelope = Envelope("request", "1", "client", client=address)
                expect((await ctx.request(Echo("?"))).client == address, "the callee knows the address of the client")

    async def case_errors_keep_class_and_fields(self) -> None:
        async with self.nodes("one"), self.asker() as (node, ctx):
            try:
                await ctx.request(Refuse("because"))
            except Refused as error:
                expect(error.reason == "because", "the error has its fields")
            else:
                raise ConformanceError("no error came")
            stranger = node.client("stranger", (kit,))
            stranger.host.definition = WithoutErrors.definition  # type: ignore[attr-defined]
            try:
                await stranger.request(Refuse("because"))
            except RemoteError as error:
                expect(
                    (error.status, error.code, error.fields) == (409, "refused", {"reason": "because"}),
                    "a service without the contract sees all fields",
                )
            else:
                raise ConformanceError("no error came")

    async def case_one_mebibyte(self) -> None:
        text = "ü" * (512 * 1024)
        async with self.nodes("one"), self.asker() as (_, ctx):
            expect((await ctx.request(Echo(text))).text == text, "one MiB is unchanged in both directions")

    async def case_a_thousand_in_flight(self) -> None:
        async with self.nodes("one"), self.asker() as (_, ctx):
            replies = await asyncio.gather(*(ctx.request(Echo(str(number))) for number in range(1000)))
            expect([reply.text for reply in replies] == [str(number) for number in range(1000)], "each gets its own reply")

    async def case_replicas_share_requests(self) -> None:
        async with self.nodes("one", "two"), self.asker(see=2) as (_, ctx):
            replies = await asyncio.gather(*(ctx.request(Echo("?")) for _ in range(100)))
            expect({reply.node for reply in replies} == {"one", "two"}, "both replicas answer some")

    async def case_no_instance(self) -> None:
        async with self.asker(see=0) as (_, ctx):
            try:
                await ctx.request(Echo("?"), timeout=1)
            except NoInstance:
                return
        raise ConformanceError("a request without any instance raised no error")

    async def case_deadline(self) -> None:
        async with self.nodes("one") as [(_, peer)], self.asker() as (_, ctx):
            try:
                await ctx.request(Hang("late"), timeout=0.1)
            except DeadlineExceeded:
                pass
            else:
                raise ConformanceError("no error at the deadline")
            await eventually(lambda: peer.cancelled == ["late"], "the callee's work was cancelled")

    async def case_cancellation_reaches_the_callee(self) -> None:
        async with self.nodes("one", request_timeout=120) as [(_, peer)], self.asker(request_timeout=120) as (_, ctx):
            task = asyncio.create_task(ctx.request(Hang("cancelled")))
            await eventually(lambda: peer.started == ["cancelled"], "the request arrived")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await eventually(lambda: peer.cancelled == ["cancelled"], "the callee's work was cancelled")

    async def case_a_cancel_that_overtakes_its_request(self) -> None:
        async with self.nodes("one") as [(node, peer)], self.asker() as (asker, ctx):
            to = Address("conformance", node.id)
            back = Address("asker", asker.id)
            transport = asker.environment.transport
            await transport.unicast(to, Envelope("cancel", "early", "conformance.Hang", reply_to=back), "asker")
            body: Any = Hang("early") if transport.zero_copy else b'{"name":"early"}'
            await transport.unicast(to, Envelope("request", "early", "conformance.Hang", body, reply_to=back), "asker")
            await ctx.request(Echo("a later one has been through"))
            expect(peer.started == [], "a request whose cancel came first does not run")

    async def case_back_pressure(self) -> None:
        async with self.nodes("one", service=Narrow) as [(_, peer)], self.asker() as (_, ctx):
            tasks = [asyncio.create_task(ctx.request(Hang(str(number)))) for number in range(2)]
            await eventually(lambda: peer.started == ["0"], "the first runs")
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(WAIT):
                    while True:
                        await ctx.request(Echo("one too many"), timeout=0.2)
            except Overloaded:
                pass
            except DeadlineExceeded:
                await eventually(lambda: False, "a full mailbox refuses at once")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
