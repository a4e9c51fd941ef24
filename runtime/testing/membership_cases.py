"""Conformance cases: instances that join, leave, crash, and drain."""

import asyncio

from runtime.contract.errors import InstanceLost, NotDelivered, ServiceError
from runtime.network.envelope import Address, Envelope
from runtime.network.manifest import Manifest
from runtime.network.transport import PeerUnreachable
from runtime.testing.expectations import WAIT, ConformanceError, eventually, expect
from runtime.testing.kit import KitBase
from runtime.testing.peer import Echo, Echoed, Hang, RecordingReceiver


class MembershipCases(KitBase):
    """Instances that come and go."""

    async def case_join_and_leave(self) -> None:
        async with self.asker(see=0) as (asker, _):
            async with self.nodes("one"):
                await eventually(lambda: len(asker.registry.members("conformance")) == 1, "it is seen to join")
            await eventually(lambda: not asker.registry.members("conformance"), "it is seen to leave")

    async def case_only_watched_services_are_reported(self) -> None:
        transport, other, listener = self.factory(), self.factory(), RecordingReceiver()
        await transport.open("watcher", listener)
        await other.open("other", RecordingReceiver())
        try:
            await other.announce(Manifest("apple", "other", "1"))
            await other.announce(Manifest("pear", "other", "2"))
            await transport.watch("apple")
            expect(set(listener.members) == {Address("apple", "other")}, "the members are reported before `watch` returns")
            expect(listener.loads[Address("apple", "other")] == 7, "their load is reported, too")
            await other.announce(Manifest("pear", "other", "2", version="1"))
            await other.announce(Manifest("apple", "other", "1", version="1"))
            await eventually(lambda: listener.members[Address("apple", "other")].version == "1", "a changed manifest is reported")
            expect(set(listener.members) == {Address("apple", "other")}, "no other service is reported")
            await transport.watch(None)
            await eventually(
                lambda: Address("pear", "other") in listener.members, "all services are reported once all are watched"
            )
        finally:
            await other.close()
            await transport.close()

    async def case_a_crash_is_seen_and_fails_its_calls(self) -> None:
        if self.crash is None:
            return
        async with self.nodes("one", drain_timeout=0.1) as [(node, peer)], self.asker() as (asker, ctx):
            task = asyncio.create_task(ctx.request(Hang("lost")))
            await eventually(lambda: peer.started == ["lost"], "the request arrived")
            await self.crash(node.environment.transport)
            try:
                async with asyncio.timeout(WAIT):
                    await task
            except InstanceLost:
                pass
            except ServiceError as error:
                raise ConformanceError(f"expected InstanceLost, got {error!r}") from error
            await eventually(lambda: not asker.registry.members("conformance"), "it is removed from the registry")

    async def case_idempotent_requests_move_to_another_instance(self) -> None:
        if self.crash is None:
            return
        async with self.nodes("one", "two") as [(node, _), _], self.asker(see=2) as (_, ctx):
            await self.crash(node.environment.transport)
            replies = await asyncio.gather(*(ctx.request(Echo(str(number))) for number in range(20)))
            expect({reply.node for reply in replies} == {"two"}, "the other replica answers all of them")

    async def case_unicast_to_an_unknown_address(self) -> None:
        transport = self.factory()
        await transport.open("lonely", RecordingReceiver())
        try:
            await transport.unicast(Address("conformance", "unknown"), Envelope("request", "1", "conformance.Echo"), "lonely")
        except PeerUnreachable:
            return
        finally:
            await transport.close()
        raise ConformanceError("an envelope to an unknown address was accepted")

    async def case_close_while_busy(self) -> None:
        async with self.asker(see=0) as (asker, ctx):
            async with self.nodes("one", drain_timeout=0.1) as [(_, peer)]:
                await eventually(lambda: len(asker.registry.members("conformance")) == 1, "it is seen to join")
                tasks = [asyncio.create_task(ctx.request(Hang(str(number)))) for number in range(10)]
                await eventually(lambda: len(peer.started) == 10, "all of them run")
            done = await asyncio.gather(*tasks, return_exceptions=True)
            expect(all(isinstance(error, ServiceError) for error in done), f"each call ends in a ServiceError: {done[0]!r}")
            expect(len(peer.cancelled) == 10, "unfinished handlers were cancelled")

    async def case_a_request_is_not_left_waiting_by_an_instance_that_leaves(self) -> None:
        sender, receiver, listener, peer = self.factory(), self.factory(), RecordingReceiver(), RecordingReceiver()
        await receiver.open("receiver", peer)
        await sender.open("sender", listener)
        to = Address("conformance", "receiver")
        request = Envelope("request", "1", "conformance.Hang", b"", "sender", Address("sender", "sender"), 60.0)
        sending = None
        try:
            await receiver.announce(Manifest("conformance", "receiver", "1"))
            await sender.watch("conformance")
            await eventually(lambda: to in listener.members, "it is seen to join")
            sending = sent = asyncio.create_task(sender.unicast(to, request, "sender"))
            await asyncio.sleep(0)
            await receiver.close()

            def ended() -> bool:
                failed = sent.done() and sent.exception() is not None
                return failed or bool(listener.envelopes or peer.envelopes) or (to, True) in listener.departed

            await eventually(ended, "the request arrived, failed, or was answered, or its instance was reported as lost")
            expect((to, False) in listener.departed or not listener.departed, "it withdraws first")
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait((sending,))
            await sender.close()
            await receiver.close()

    async def case_drain_finishes_what_runs(self) -> None:
        async with self.asker(see=0) as (asker, ctx):
            async with self.nodes("one"):
                await eventually(lambda: len(asker.registry.members("conformance")) == 1, "it is seen to join")
                tasks = [asyncio.create_task(ctx.request(Echo(str(number)))) for number in range(100)]
                await asyncio.sleep(0)
            done = await asyncio.gather(*tasks, return_exceptions=True)
            wrong = [answer for answer in done if not isinstance(answer, Echoed | NotDelivered)]
            expect(not wrong, f"each call is answered, or was not delivered: {wrong[:1]!r}")
