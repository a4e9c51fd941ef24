"""Conformance cases: order, anycast, signals, and heads of streams."""

from typing import Any

import msgspec

from runtime.network.envelope import Address, Envelope, Head, Topic
from runtime.network.manifest import Manifest
from runtime.network.transport import Transport
from runtime.testing.expectations import eventually, expect
from runtime.testing.kit import KitBase
from runtime.testing.peer import RecordingReceiver, Tick, Toll


class MulticastCases(KitBase):
    """Envelopes to several nodes, and their order."""

    async def case_order(self) -> None:
        if not self.capabilities.ordered:
            return
        sender, receiver = self.factory(), self.factory()
        listener = RecordingReceiver()
        await sender.open("sender", RecordingReceiver())
        await receiver.open("receiver", listener)
        try:
            await receiver.listen("conformance")
            for number in range(200):
                await sender.unicast(
                    Address("conformance", "receiver"), Envelope("request", str(number), "conformance.Echo"), "sender"
                )
            await eventually(lambda: len(listener.envelopes) == 200, "all arrive")
            expect([envelope.id for envelope, _ in listener.envelopes] == [str(number) for number in range(200)], "in order")
            expect({envelope.caller for envelope, _ in listener.envelopes} == {"sender"}, "from the sender")
        finally:
            await sender.close()
            await receiver.close()

    async def case_anycast(self) -> None:
        receivers: list[tuple[Transport, RecordingReceiver]] = []
        sender = self.factory()
        await sender.open("sender", RecordingReceiver())
        try:
            if not sender.capabilities.anycast:
                return
            for name in ("one", "two"):
                receivers.append((self.factory(), RecordingReceiver()))
                await receivers[-1][0].open(name, receivers[-1][1])
                await receivers[-1][0].listen("conformance")
            for number in range(20):
                await sender.anycast("conformance", Envelope("request", str(number), "conformance.Echo"), "sender")
            seen = [listener.envelopes for _, listener in receivers]
            await eventually(lambda: sum(map(len, seen)) == 20, "all arrive")
            expect(all(seen), "each listener gets some")
        finally:
            for transport in (sender, *(transport for transport, _ in receivers)):
                await transport.close()

    async def case_a_signal_reaches_one_of_each_group(self) -> None:
        if not self.capabilities.signals:
            return
        async with self.nodes("one", "two") as [(node, first), (_, second)]:
            ctx = node.client("conformance", ())
            for number in range(50):
                await ctx.publish(Tick(number))
            await eventually(lambda: len(first.ticks) + len(second.ticks) >= 50, "all arrive")
            expect(sorted(first.ticks + second.ticks) == list(range(50)), "each once")

    async def case_a_broadcast_reaches_all(self) -> None:
        if not self.capabilities.signals:
            return
        async with self.nodes("one", "two") as [(node, first), (_, second)]:
            ctx = node.client("conformance", ())
            for number in range(50):
                await ctx.publish(Toll(number=number))
            await eventually(lambda: len(first.tolls) == len(second.tolls) == 50, "all arrive at both")
            if self.capabilities.ordered:
                expect(first.tolls == second.tolls == list(range(50)), "in order")

    async def case_a_key_narrows_a_topic(self) -> None:
        if not self.capabilities.signals:
            return
        sender, receiver = self.factory(), self.factory()
        listener = RecordingReceiver()
        await sender.open("sender", RecordingReceiver())
        await receiver.open("receiver", listener)
        try:
            await receiver.subscribe(Topic("signal", "sender", "Ping", "mine"), "one", broadcast=False)
            await receiver.subscribe(Topic("signal", "sender", "Ping"), "all", broadcast=False)
            for key in ("mine", "yours"):
                await sender.multicast(Topic("signal", "sender", "Ping", key), Envelope("signal", key, "sender.Ping"), "sender")
            await eventually(lambda: len(listener.envelopes) >= 3, "three arrive")
            expect(
                sorted((envelope.id, to) for envelope, to in listener.envelopes)
                == [("mine", "all"), ("mine", "one"), ("yours", "all")],
                "each signal reaches the subscribers of its key",
            )
        finally:
            await sender.close()
            await receiver.close()

    async def case_heads_reach_every_subscriber(self) -> None:
        sender, receiver = self.factory(), self.factory()
        listener, neighbour = RecordingReceiver(), RecordingReceiver()
        await sender.open("sender", neighbour)
        await receiver.open("receiver", listener)
        heads: list[Head] = []
        try:
            await sender.announce(Manifest("apple", "sender", "1"))
            await receiver.watch("apple")
            for service in ("one", "two"):
                await receiver.subscribe(Topic("stream", "apple"), service, broadcast=True)
            await sender.subscribe(Topic("stream", "apple"), "neighbour", broadcast=True)
            for number in range(1, 4):
                body: Any = Head("epoch", number) if sender.zero_copy else msgspec.json.encode(Head("epoch", number))
                await sender.multicast(Topic("stream", "apple"), Envelope("head", "", "apple.head", body), "apple")

            def last() -> bool:
                heads[:] = [_head(envelope) for envelope, to in listener.envelopes if to == "two" and envelope.caller == "apple"]
                return bool(heads) and heads[-1].seq == 3

            await eventually(last, "the last head arrives (earlier ones may be skipped)")
            expect({to for _, to in listener.envelopes} == {"one", "two"}, "both services receive it")
            await eventually(lambda: "neighbour" in {to for _, to in neighbour.envelopes}, "and on the publisher's own node")
            await receiver.unsubscribe(Topic("stream", "apple"), "one")
        finally:
            await receiver.close()
            await sender.close()

    async def case_unsubscribing(self) -> None:
        if not self.capabilities.signals:
            return
        sender, receiver = self.factory(), self.factory()
        listener = RecordingReceiver()
        await sender.open("sender", RecordingReceiver())
        await receiver.open("receiver", listener)
        mine, all_keys = Topic("signal", "sender", "Ping", "mine"), Topic("signal", "sender", "Ping")
        try:
            await receiver.unsubscribe(mine, "one")
            for topic, service in ((mine, "one"), (all_keys, "two"), (all_keys, "last")):
                await receiver.subscribe(topic, service, broadcast=True)
            await sender.multicast(mine, Envelope("signal", "first", "sender.Ping"), "sender")
            await eventually(lambda: len(listener.envelopes) >= 3, "all three receive it")
            await receiver.unsubscribe(mine, "one")
            await receiver.unsubscribe(all_keys, "two")
            await sender.multicast(mine, Envelope("signal", "second", "sender.Ping"), "sender")
            await eventually(lambda: len(listener.envelopes) >= 4, "the remaining subscriber receives it")
            expect(
                [to for envelope, to in listener.envelopes if envelope.id == "second"] == ["last"],
                "no other subscriber receives it",
            )
        finally:
            await sender.close()
            await receiver.close()


def _head(envelope: Envelope) -> Head:
    return envelope.body if isinstance(envelope.body, Head) else msgspec.json.decode(envelope.body, type=Head)
