"""The log on standard error: one record per line, for people in a terminal and as JSON elsewhere.

Records of other libraries take the same way. A record that is written while a message is handled has the ids of the client's request and of its trace.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import IO, Any, TextIO, cast

import msgspec
import structlog
from structlog.dev import Column, ConsoleRenderer
from structlog.processors import format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor

from config.settings import Settings
from runtime.telemetry import current, printable, printable_json, services_by_logger
from runtime.trace import trace_id

_OURS = "callboard."
_QUIET = ("aiosqlite", "watchfiles")
"""Loggers of libraries that log each statement, and each look at the files."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes of a record that `logging` itself sets."""
_OWN = ("time", "level", "logger", "event", "message")
"""Fields that no caller sets. What structlog calls the event is the message."""
_NAMES = {"event": "message", "extra_event": "event"}
"""Fields that have another name in JSON than structlog or this module gives them."""
_META = ("_record", "_from_structlog")
"""What structlog adds for its processors."""


class _Process:
    """What names this process in records that no message has caused."""

    node = ""


def name_node(node: str) -> None:
    """Let records that no message has caused name a node."""
    _Process.node = node


def set_up_logging(settings: Settings) -> None:
    """Send log records to standard error."""
    handler = _Handler()
    handler.setFormatter(formatter(settings.log.format, sys.stderr))
    logging.basicConfig(level=settings.log.level.upper(), handlers=[handler], force=True)
    for quiet in _QUIET:
        logging.getLogger(quiet).setLevel(logging.WARNING)
    for name, service in settings.services.items():
        if service.log.level is not None:
            logging.getLogger(f"{_OURS}{name}").setLevel(service.log.level.upper())
    structlog.configure(  # for services that use it
        processors=[structlog.stdlib.filter_by_level, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def formatter(style: str, stream: IO[str]) -> logging.Formatter:
    """Return what renders records: `text`, `json`, or by default what fits the stream."""
    if style == "text" or (style == "auto" and stream.isatty()):
        return ProcessorFormatter(processors=[_add_fields, format_exc_info, *_text(colors=stream.isatty())])
    return _JsonFormatter()


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error. If nobody reads that any more, the process stops in order, instead of running unobserved."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name in the base class
        from config import signals

        if isinstance(sys.exception(), BrokenPipeError):
            signals.output_gone(self.stream, "standard error")
        else:
            super().handleError(record)


# Fields


class _Times:
    """Formats times of day by RFC 3339, with the machine's own zone. All but the milliseconds is formatted once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._begins = self._zone = ""

    def text(self, created: float) -> str:
        """Return the time of a record, from the seconds since 1970."""
        second = int(created)
        if second != self._second:
            at = datetime.fromtimestamp(second, UTC).astimezone().isoformat()
            self._second, self._begins, self._zone = second, at[:19], at[19:]
        return f"{self._begins}.{int(1000 * (created - second)):03d}{self._zone}"


_times = _Times()


def _fields(record: logging.LogRecord, message: str) -> EventDict:
    """Return the fields of a record: time, level, logger, service, and node, the ids of the message that is handled, and the caller's own."""
    level = record.levelname.lower()
    found: EventDict = {"time": _times.text(record.created), "level": level, "logger": record.name, "event": message}
    origin = current.get()
    service = services_by_logger.get(record.name) or (None if origin is None else origin.service)
    if service:
        found["service"] = service
    if node := (_Process.node if origin is None or not origin.node else origin.node):
        found["node"] = node
    if origin is not None:
        found["request_id"] = origin.request_id
        found["trace_id"] = trace_id(origin.trace)
    for field, value in record.__dict__.items():
        if field not in _STANDARD:
            found[f"extra_{field}" if field in _OWN else field] = value
    return found


def _add_fields(_: Any, __: str, found: EventDict) -> EventDict:
    return {**_fields(found["_record"], str(found["event"])), **found}


# Renderers


class _JsonFormatter(ProcessorFormatter):
    """Renders records as JSON. Those of `logging`, which are nearly all, skip structlog's steps: they would take four times as long."""

    def __init__(self) -> None:
        super().__init__(processors=[_add_fields, format_exc_info, lambda _, __, found: _json_text(found)])

    def format(self, record: logging.LogRecord) -> str:
        if hasattr(record, "_logger"):
            return super().format(record)  # structlog has made it
        found = _fields(record, record.getMessage())
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            found["stack"] = record.stack_info
        return _json_text(found)


def _json_text(found: EventDict) -> str:
    fields = {_NAMES.get(name, name): value for name, value in found.items() if name not in _META}
    try:
        text = msgspec.json.encode({name: _plain(value) for name, value in fields.items()}).decode()
    except (TypeError, ValueError, RecursionError):  # half of a character, for example
        text = json.dumps({name: str(value) for name, value in fields.items()})
    return printable_json(text)


def _plain(value: object) -> object:
    """Return a value as JSON has it. An object is its `repr`, in which its secret fields are masked."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in cast("Mapping[object, object]", value).items()}
    if type(value) in (list, tuple, set, frozenset):
        return [_plain(item) for item in cast("Iterable[object]", value)]
    return repr(value)


def _text(*, colors: bool) -> list[Processor]:
    """Return the processors that render for people: one line for a record, and indented ones for a traceback."""
    style, levels = ConsoleRenderer.get_default_column_styles(colors), ConsoleRenderer.get_default_level_styles(colors)

    def column(name: str, color: str, shown: Callable[[str], str] = str) -> Column:
        def column(key: str, value: object) -> str:
            return f"{color}{shown(printable(str(value)))}{style.reset}"

        return Column(name, column)

    def level(key: str, value: object) -> str:
        return f"{levels.get(str(value), '')}{str(value).upper():<7}{style.reset}"

    def field(key: str, value: object) -> str:
        text = printable(str(value))
        quoted = text if text and " " not in text else json.dumps(text, ensure_ascii=False)
        return f"{style.kv_key}{key}{style.reset}={style.kv_value}{quoted}{style.reset}"

    columns = [
        column("time", style.timestamp),
        Column("level", level),
        column("logger", style.logger_name, "{}:".format),
        column("event", style.bright),
        Column("", field),
    ]
    return [_for_people, ConsoleRenderer(columns=columns, sort_keys=False)]


def _for_people(_: Any, __: str, record: EventDict) -> EventDict:
    """Leave out what the line says already, and what only programs need."""
    for name in (*_META, "extra_event", "details", "service", "node", "trace_id", "incident"):
        record.pop(name, None)
    lines = [str(record.pop(name)) for name in ("stack_info", "exception") if name in record]
    if lines:
        record["exception"] = "\n".join(f"  {printable(line)}" for line in "\n".join(lines).splitlines())
    return record
