"""The observation of a node by the console: it records what it does while a gateway asks for it, and not at all otherwise."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from runtime.contract.messages import Request, Struct
from runtime.durable.console import console
from runtime.execution.environment import Environment
from runtime.recorder import Edge, RecordedSpan, Recorder, is_own_page
from runtime.storage.values import LARGEST
from runtime.telemetry import current, printable, services_by_logger
from runtime.trace import trace_id
from runtime.tracing import Tracing

LEASE = 10.0
"""The seconds for which a node records after a gateway has asked."""
MOST_SPANS, MOST_LOGS = 250, 200
"""The spans and log records in one answer, at most."""
_ASKS_WITHIN = 3.0
"""The seconds within which each gateway asks again."""
_KEPT_LOGS = 1_000
_LONGEST_MESSAGE = 2_000


class LogLine(Struct):
    """A log record.

    Attributes:
        at: the seconds since 1970.
        service: the service that has written it; empty for the node itself.
        request: the id of the client's request that was worked for; empty for none.
        trace: the id of the trace.
    """

    at: float
    level: str
    logger: str
    service: str
    node: str
    request: str
    trace: str
    message: str


class Observed(Struct):
    """What a node has recorded.

    Attributes:
        recording: the id of the recording; numbers begin again with another one.
        edges: what was sent along each edge since the recording has begun.
        spans: the spans after the given number.
        last_span: the number of the last of them.
        recorded: how many spans there are by now.
        last_log: the number of the last log record.
    """

    recording: str
    edges: tuple[Edge, ...]
    spans: tuple[RecordedSpan, ...]
    last_span: int
    recorded: int
    logs: tuple[LogLine, ...]
    last_log: int


Number = Annotated[int, Meta(ge=0, le=LARGEST)]


@console.message
class Observe(Request[Observed]):
    """What the node has done. It records for ten seconds more.

    Attributes:
        recording: the id of the recording that the numbers are from; empty at first.
        span: the number of the last span that is known.
        log: the number of the last log record that is known.
        one_in: keep the spans of one in so many traces from now on.
    """

    recording: str = ""
    span: Number = 0
    log: Number = 0
    one_in: Annotated[int, Meta(ge=1, le=1 << 20)] = 1


class Observation:
    """Turns the recorder of a node on and off.

    Args:
        trace: lets all services of the node begin their spans with other tracing.
    """

    def __init__(self, environment: Environment, trace: Callable[[Tracing | None], None]) -> None:
        self._environment = environment
        self._trace = trace
        self._usual: Tracing | None = None
        self._recording = ""
        self._recorder: Recorder | None = None
        self._logs: _Logs | None = None
        self._until = 0.0
        self._asked: list[tuple[float, int]] = []
        """When gateways have asked in the last seconds, and how many traces each wants. The one that wants the fewest counts."""
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Observation of {self._environment.node}: {self._recorder or 'off'}>"

    async def answer(self, message: Observe) -> Observed:
        """Return what was recorded, and go on recording."""
        recorder, logs = self._begin()
        now = self._environment.clock.loop.time()
        self._until = now + LEASE
        self._asked = [(at, one_in) for at, one_in in self._asked if at > now - _ASKS_WITHIN] + [(now, message.one_in)]
        recorder.one_in = max(one_in for _, one_in in self._asked)
        known = message.recording == self._recording
        spans, last_span = recorder.spans(message.span if known else 0, MOST_SPANS)
        lines, last_log = logs.after(message.log if known else 0)
        return Observed(self._recording, recorder.edges(), spans, last_span, recorder.recorded, lines, last_log)

    def _begin(self) -> "tuple[Recorder, _Logs]":
        if self._recorder is not None and self._logs is not None:
            return self._recorder, self._logs
        environment = self._environment
        self._recording = environment.random.hex(16)
        self._usual = environment.tracing
        recorder = self._recorder = Recorder(environment.node, environment.clock, environment.random, self._usual)
        logs = self._logs = _Logs(environment.node)
        self._trace(recorder)
        logging.getLogger().addHandler(logs)
        self._timer = environment.clock.loop.call_later(LEASE, self._check)
        return recorder, logs

    def _check(self) -> None:
        loop = self._environment.clock.loop
        if loop.time() < self._until:
            self._timer = loop.call_at(self._until, self._check)
        else:
            self.end()

    def end(self) -> None:
        """Record no longer. Calling it twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
        if self._logs is not None:
            logging.getLogger().removeHandler(self._logs)
        if self._recorder is not None:
            self._trace(self._usual)
        self._timer = self._recorder = self._logs = None


class _Logs(logging.Handler):
    """Keeps the last log records of a node."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node
        self._kept: deque[LogLine] = deque(maxlen=_KEPT_LOGS)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        origin = current.get()
        if origin is not None and origin.node not in ("", self._node):
            return  # of another node in this process
        if (
            record.name == "callboard.access"
            and is_own_page(str(getattr(record, "path", "")))
            and record.levelno < logging.WARNING
        ):
            return
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message = f"{message} ({record.exc_info[1]!r})"
        except Exception:  # a value that has no text: the handler of the log reports it
            return
        service = services_by_logger.get(record.name) or ("" if origin is None else origin.service)
        request, trace = ("", "") if origin is None else (origin.request_id, trace_id(origin.trace))
        self._count += 1
        self._kept.append(
            LogLine(
                record.created, record.levelname.lower(), record.name, service, self._node, request, trace,
                printable(message)[:_LONGEST_MESSAGE],
            )
        )  # fmt: skip

    def after(self, number: int) -> tuple[tuple[LogLine, ...], int]:
        """Return the last records after a number, and the number of the last one."""
        new = min(max(self._count - number, 0), len(self._kept), MOST_LOGS)
        return tuple(self._kept[at] for at in range(len(self._kept) - new, len(self._kept))), self._count
