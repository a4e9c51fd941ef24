"""An endpoint: a handler of one running instance, with the codecs of its message and reply."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from runtime.contract.errors import CallboardError, Invalid, Violation
from runtime.contract.rest import Params, RestDecoder, decode_json
from runtime.network.envelope import Envelope
from runtime.service.handlers import Handler

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


class WrongReply(CallboardError):
    """A handler returned something else than its contract says."""


class Endpoint:
    """One handler, ready to run."""

    __slots__ = ("_decoder", "_rest", "handler", "method", "name", "place", "reply")

    def __init__(self, handler: Handler, method: Callable[..., Awaitable[Any]]) -> None:
        self.handler = handler
        self.name = handler.spec.full_name
        self.method = method
        self.place = getattr(method, "__qualname__", handler.name)
        """Class and method, for logs."""
        self._decoder = msgspec.json.Decoder(handler.spec.cls)
        self._rest = None if handler.http is None else RestDecoder(handler.spec.cls, handler.http)
        self.reply: msgspec.json.Decoder[Any] = msgspec.json.Decoder(handler.spec.reply)

    def message(self, envelope: Envelope) -> Any:
        """The message in an envelope.

        Raises:
            Malformed: its body is no JSON.
            Invalid: it has another form than the contract says.
        """
        if isinstance(envelope.body, bytes):
            return self.decode(envelope.params, envelope.body)
        return envelope.body

    def decode(self, params: Params | None, body: bytes) -> Any:
        """The message in a REST request's parts, or, without `params`, in JSON text. Raises like `message`."""
        if params is None:
            return decode_json(self._decoder, body)
        if self._rest is None:
            raise Invalid((Violation("", f"{self.name} has no REST route"),))
        return self._rest(params, body)

    def check(self, reply: Any, *, quickly: bool) -> None:
        """Looks whether the handler returned what its contract says, before anything is committed.

        Args:
            quickly: at the class alone, not at the fields.

        Raises:
            WrongReply: it did not.
        """
        expected = self.handler.spec.reply
        if expected is None or isinstance(expected, type):
            if isinstance(reply, type(None) if expected is None else expected):
                if quickly:
                    return
            else:
                raise WrongReply(f"{self.place} returned {reply!r:.100}, expected {getattr(expected, '__name__', expected)}")
        try:
            self.copy_reply(reply)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise WrongReply(f"{self.place} returned {reply!r:.100}, which does not fit {expected}: {error}") from None

    def copy(self, message: Any) -> Any:
        """The message as it would arrive across a network."""
        return decode_json(self._decoder, encode(message))

    def copy_reply(self, reply: Any) -> Any:
        """The reply as it would arrive across a network."""
        return self.reply.decode(encode(reply))
