"""The logs of a node: its loggers, what their records name, and security events."""

import json
import logging
from contextvars import ContextVar
from typing import Literal, Protocol

from runtime.repeats import Repeats


class Origin(Protocol):
    """The message that is being handled, as log records name it."""

    @property
    def service(self) -> str:
        """The service whose handler runs."""
        ...

    @property
    def node(self) -> str:
        """The node on which it runs."""
        ...

    @property
    def request_id(self) -> str:
        """The id of the client's request, in every service that works for it."""
        ...

    @property
    def trace(self) -> str:
        """The W3C `traceparent`."""
        ...


current: ContextVar[Origin | None] = ContextVar("current", default=None)
"""What the current task works for; None if that is no message."""


def printable(text: str) -> str:
    """Return a text with its control characters escaped, so that a value from outside can neither begin a new line nor
    move the cursor, change colours, or reverse the direction of a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_json(text: str) -> str:
    """Return JSON text on one line with the control characters escaped that JSON allows."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def logger(name: str) -> logging.Logger:
    """Return the logger `callboard.<name>`. The messages of its records are one line each, whatever renders them."""
    found = logging.getLogger(f"callboard.{name}")
    found.addFilter(_escape_message)  # adding it twice is harmless
    return found


def service_logger(service: str) -> logging.Logger:
    """Return the logger of a service. Its records name the service, whoever's message is being handled."""
    found = logger(service)
    services_by_logger[found.name] = service
    return found


services_by_logger: dict[str, str] = {}
"""The services of this process, by the names of their loggers."""


def _escape_message(record: logging.LogRecord) -> bool:
    try:
        message = record.getMessage()
    except Exception:  # wrong arguments: the handler reports them
        return True
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    return True


_security = logger("security")


def log_key_change(what: str, **details: str) -> None:
    """Log that the keys which sign or verify tokens have changed: one line, whose first word is always `security.keys`."""
    _log_security(logging.WARNING, "security.keys", {"what": what, **details})


def _log_security(level: int, event: str, details: dict[str, str]) -> None:
    _security.log(level, "%s %s", event, _quoted(details), extra={"event": event, "details": details})


def _quoted(details: dict[str, str]) -> str:
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in details.items())


_REFUSALS = 10
"""How many refusals of one kind and client are logged in full each minute: programs that block clients count these lines."""
Refused = Literal["login", "token", "authorization"]
"""What may be refused."""


def log_refusal(repeats: Repeats, what: Refused, reason: str, **details: str | None) -> None:
    """Log that a login, a token, or an authorization was refused: one line, whose first word is always `security.refused`.

    It is a warning, so that it stays in a log whose level leaves out what is usual. After ten lines about the same within a
    minute, the others are counted.

    Args:
        repeats: counts them.
        what: the kind of refusal.
        reason: why. Neither it nor a detail may be a secret, or a text that a user typed.
        details: who was refused and where, such as `service`, `request`, `caller`, `client`, and `user`. None is left out.
    """
    named = {"what": what, **{name: value for name, value in details.items() if value}, "reason": reason}
    key = ("security", *(value for name, value in named.items() if name not in ("message", "trace", "path", "method")))
    extra = {"event": "security.refused", "details": named}
    repeats.log(_security, logging.WARNING, key, "security.refused %s", _quoted(named), extra=extra, in_full=_REFUSALS)
