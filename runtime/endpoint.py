"""An endpoint: a handler of one running instance, with the codecs of its message and reply."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from runtime.envelope import Envelope
from runtime.errors import Invalid, Violation
from runtime.handlers import Handler
from runtime.rest import RestDecoder, decode_json

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


class Endpoint:
    """One handler, ready to run."""

    __slots__ = ("_decoder", "_rest", "handler", "method", "name", "reply")

    def __init__(self, handler: Handler, method: Callable[..., Awaitable[Any]]) -> None:
        self.handler = handler
        self.name = handler.spec.full_name
        self.method = method
        self._decoder = msgspec.json.Decoder(handler.spec.cls)
        self._rest = None if handler.http is None else RestDecoder(handler.spec.cls, handler.http)
        self.reply: msgspec.json.Decoder[Any] = msgspec.json.Decoder(handler.spec.reply)

    def message(self, envelope: Envelope) -> Any:
        """The message in an envelope.

        Raises:
            Malformed: its body is no JSON.
            Invalid: it has another form than the contract says.
        """
        if envelope.params is not None:
            if self._rest is None:
                raise Invalid((Violation("", f"{self.name} has no REST route"),))
            return self._rest(envelope.params, envelope.body)
        if isinstance(envelope.body, bytes):
            return decode_json(self._decoder, envelope.body)
        return envelope.body

    def rest_message(self, params: tuple[tuple[str, str], ...], body: bytes) -> Any:
        """The message in a REST request's parts. Raises like `message`."""
        assert self._rest is not None, "the gateway routes only to handlers with a route"
        return self._rest(params, body)

    def copy(self, message: Any) -> Any:
        """The message as it would arrive across a network."""
        return decode_json(self._decoder, encode(message))

    def copy_reply(self, reply: Any) -> Any:
        """The reply as it would arrive across a network."""
        return self.reply.decode(encode(reply))
