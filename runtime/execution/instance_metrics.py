"""The metrics that an instance has from its start."""

import functools

from runtime.clock import Clock
from runtime.contract.errors import Draining, Overloaded, UnknownRequest
from runtime.durable.stream import Stream
from runtime.execution.mailbox import Mailbox
from runtime.metrics import Commits, Metrics
from runtime.service.service import Service
from runtime.storage.database import Database


def begin_metrics(metrics: Metrics, service: Service, mailbox: Mailbox) -> None:
    """Let the counters of a service begin at zero, and declare the gauges of its instance."""
    name = mailbox.service
    metrics.begin(service=name)
    for error in (Overloaded, Draining, UnknownRequest):
        metrics.count("requests_refused_total", 0, service=name, code=error.code)
    for timer in service.definition.timers:
        metrics.begin(service=name, timer=timer.name)
    metrics.gauge("instance_load", lambda: mailbox.load, service=name)
    metrics.gauge("mailbox_waiting", lambda: mailbox.waiting, service=name)
    metrics.gauge("mailbox_slots", lambda: mailbox.concurrency, service=name)
    metrics.gauge("build_info", lambda: 1, service=name, version=service.version, callboard=_version())


def measure_database(metrics: Metrics, service: str, database: Database, stream: Stream, clock: Clock) -> None:
    """Measure the commits of a service, and declare the gauge of its stream."""
    seconds = metrics.histogram("commit_duration_seconds", service=service)
    database.commits = Commits(seconds, metrics.histogram("commit_transactions", service=service), clock.stopwatch)
    metrics.gauge("stream_head_events", lambda: stream.last, service=service)


@functools.cache
def _version() -> str:
    """Return the version of Callboard."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("callboard")
    except PackageNotFoundError:  # it runs from its source
        return "unknown"
