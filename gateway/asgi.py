"""The ASGI applications of the gateway, behind its own server: the Litestar application, and the event streams in it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.exchange import Exchange
from gateway.problems import Headers
from gateway.responses import respond_page, with_security

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class Page:
    """Has an ASGI application answer a request (the ASGI specification, HTTP connection scope).

    A request with the method HEAD is one with GET whose body is left out.
    """

    def __init__(self, exchange: Exchange, cors: Headers) -> None:
        self._exchange = exchange
        self._cors = cors
        self._head: Message | None = None

    async def serve(self, app: App) -> None:
        """Answer the request."""
        exchange = self._exchange
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if exchange.is_http_1_0 else "1.1",
            "method": exchange.method,
            "scheme": "http",
            "path": exchange.path,
            "raw_path": exchange.raw_path,
            "query_string": exchange.query,
            "root_path": "",
            "headers": exchange.pairs,
            "client": (exchange.peer, 0),
            "server": None,
            "state": {},
            "exchange": exchange,
        }
        if exchange.method == "HEAD":
            scope |= {"method": "GET", "head_only": True}
        await app(scope, exchange.receive, self._send)

    async def _send(self, message: Message) -> None:
        exchange = self._exchange
        if message["type"] == "http.response.start":
            self._head = message
            return
        head, self._head = self._head, None
        body, more = message.get("body", b""), message.get("more_body", False)
        if head is not None:
            headers: Headers = [(name.lower(), value) for name, value in head["headers"]]
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", exchange.request_id.encode()))
            if not all(_VALUE.fullmatch(value) for _, value in headers):
                raise ValueError(f"a header field of the answer to {exchange} contains a line end")
            if not more:
                headers = [pair for pair in headers if pair[0] != b"content-length"]
                respond_page(exchange, (head["status"], headers, body), self._cors)
                return
            exchange.start(head["status"], with_security(headers) + self._cors)
        await exchange.write(body)
        if not more:
            exchange.end()


def exchange_of(scope: Mapping[str, Any]) -> Exchange:
    """Return the request that an ASGI scope was made for."""
    exchange: Exchange = scope["exchange"]
    return exchange
