"""The access log: one record for each request of a client."""

import logging

from gateway.client import known_user
from gateway.exchange import Exchange
from runtime.node.proxy import Proxy
from runtime.telemetry import logger
from runtime.trace import trace_id

_log = logger("access")
PROBES = (b"/healthz", b"/readyz", b"/metrics")
"""Paths that are asked for every few seconds. They are logged for debugging only."""
CLIENT_GONE = 499
"""The status of a request whose client has gone before the answer, as other proxies write it."""
_LONGEST_PATH, _LONGEST_METHOD = 500, 20


class AccessLog:
    """Logs the requests of clients. Queries and bodies, which may have secrets, are left out."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def log(self, exchange: Exchange, seconds: float) -> None:
        """Log a request that was answered within so many seconds."""
        level = logging.DEBUG if exchange.raw_path in PROBES else logging.INFO
        if not _log.isEnabledFor(level):
            return
        status, path = exchange.status or CLIENT_GONE, exchange.path[:_LONGEST_PATH]
        method = exchange.method[:_LONGEST_METHOD]
        fields = {
            "service": "gateway", "method": method, "path": path, "status": status, "ms": round(1000 * seconds, 2),
            "bytes": exchange.sent, "client": exchange.source or exchange.peer,
            "request_id": exchange.request_id, "trace_id": trace_id(exchange.trace),
        }  # fmt: skip
        user = known_user(self._proxy, exchange.fields)
        if user is not None:
            fields["user"] = user
        message = "%s %s %d"
        # `_log.info` would look for the line of code that called it, which takes a third of the time
        record = _log.makeRecord(_log.name, level, __file__, 0, message, (method, path, status), None, extra=fields)
        _log.handle(record)
