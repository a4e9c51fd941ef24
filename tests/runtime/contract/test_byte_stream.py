"""Where a message can have a stream of bytes."""

import pytest

from runtime import ANYONE, ByteStream, Context, Contract, DefinitionError, Event, Request, Service, Struct, Transaction, handles


class Inner(Struct):
    content: ByteStream


class Two(Struct):
    one: ByteStream
    two: ByteStream


class Plain(Struct):
    content: ByteStream


def test_where_a_stream_cannot_be() -> None:
    made = Contract("made")
    with pytest.raises(DefinitionError, match=r"made.Deep: inner: a ByteStream is a field of the message or the reply itself"):

        @made.message
        class Deep(Request[None]):
            inner: Inner

    with pytest.raises(DefinitionError, match="two: one is a ByteStream already"):

        @made.message
        class Both(Request[Two]):
            pass

    with pytest.raises(DefinitionError, match="only requests and replies have one"):

        @made.message
        class Happened(Event):
            content: ByteStream

    @made.message
    class Get(Request[Plain]):
        pass

    with pytest.raises(DefinitionError, match=r"Plain.content is a ByteStream, which is the whole body: Annotated"):

        class Made(Service):
            contract = made

            @handles(http="GET /made", allow=ANYONE)
            async def get(self, message: Get, ctx: Context) -> Plain:
                raise NotImplementedError

    with pytest.raises(DefinitionError, match="a ByteStream cannot be stored"):

        class Once(Service):
            contract = made

            @handles(once=True, allow=ANYONE)
            async def get(self, message: Get, ctx: Context, tx: Transaction) -> Plain:
                raise NotImplementedError
