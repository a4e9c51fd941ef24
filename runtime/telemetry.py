"""Logs, counters, and gauges of a node."""

import json
import logging
from collections.abc import Callable
from typing import Any, Literal

from runtime.repeats import Repeats

Labels = tuple[tuple[str, str], ...]

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
"""One log line: the time, the level, the logger, and the message."""


def printable(text: str) -> str:
    """Return a text with its control characters escaped, so that a value from outside can neither begin a new line nor
    move the cursor, change colours, or reverse the direction of a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def logger(name: str) -> logging.Logger:
    """Return the logger `callboard.<name>`. The messages of its records are one line each, whatever renders them."""
    found = logging.getLogger(f"callboard.{name}")
    found.addFilter(_escape_message)  # adding it twice is harmless
    return found


def _escape_message(record: logging.LogRecord) -> bool:
    try:
        message = record.getMessage()
    except Exception:  # wrong arguments: the handler reports them
        return True
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    return True


_security = logger("security")
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
    text = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in named.items())
    key = ("security", *(value for name, value in named.items() if name not in ("message", "trace", "path", "method")))
    extra = {"event": "security.refused", "details": named}
    repeats.log(_security, logging.WARNING, key, "security.refused %s", text, extra=extra, in_full=_REFUSALS)


class LogFormatter(logging.Formatter):
    """Renders log records for people. A message is one line; the lines of a traceback are indented, so none looks like a record.

    This also holds for the records of other libraries.
    """

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT, "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name in the base class
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(lines: str) -> str:
    return "\n".join(f"  {printable(line)}" for line in lines.splitlines())


class Metrics:
    """The metrics of a node. Names of counters end in `_total`. Labels have few values, from a bounded set."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[Labels, int]] = {}
        self._gauges: dict[str, dict[Labels, Callable[[], float]]] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        series = self._counters.setdefault(name, {})
        key = tuple(labels.items())
        series[key] = series.get(key, 0) + amount

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Declare a gauge. `read` returns its value each time the metrics are read."""
        self._gauges.setdefault(name, {})[tuple(labels.items())] = read

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a counter or a gauge; 0 for a counter that was never increased."""
        key = tuple(labels.items())
        if name in self._gauges and key in self._gauges[name]:
            return self._gauges[name][key]()
        return self._counters.get(name, {}).get(key, 0)

    def text(self) -> str:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for name, series in sorted(self._counters.items()):
            lines.append(f"# TYPE callboard_{name} counter")
            lines += [f"callboard_{name}{_shown(labels)} {count}" for labels, count in sorted(series.items())]
        for name, gauges in sorted(self._gauges.items()):
            full_name = name if name.startswith("process_") else f"callboard_{name}"  # Prometheus' own names for processes
            lines.append(f"# TYPE {full_name} gauge")
            lines += [
                f"{full_name}{_shown(labels)} {read():g}" for labels, read in sorted(gauges.items(), key=lambda item: item[0])
            ]
        return "\n".join(lines) + "\n"


def _shown(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = (
        f'{name}="{value}"'
        for name, value in ((n, v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for n, v in labels)
    )
    return "{" + ",".join(escaped) + "}"
