"""The metrics of a node: counters, gauges, and histograms, which are declared here with what they mean.

Names follow Prometheus: counters end in `_total`, and a unit is part of the name. All labels have few values, from a bounded set. A
series is there from the start, so that its first increase is seen. `gateway/exposition.py` renders them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Labels = tuple[tuple[str, str], ...]

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of the buckets of durations."""
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Family(NamedTuple):
    """What is known of all series with one name.

    Attributes:
        kind: how the value behaves.
        help: what it is.
        labels: the names of the labels, in order.
        buckets: the upper bounds of a histogram's buckets, in the unit of the name.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(text: str, *labels: str) -> Family:
    return Family("counter", text, labels)


def _gauge(text: str, *labels: str) -> Family:
    return Family("gauge", text, labels)


def _seconds(text: str, *labels: str) -> Family:
    return Family("histogram", text, labels, SECONDS)


FAMILIES: dict[str, Family] = {
    # requests
    "request_duration_seconds": _seconds("The time from a request's arrival at its instance to its reply, with the wait for a slot.", "service", "request"),
    "request_errors_total": _counter("Requests that were answered with an error.", "service", "request", "code"),
    "requests_refused_total": _counter("Requests that were refused before their handler.", "service", "code"),
    "requests_running": _gauge("Requests from the network that run or wait here."),
    "duplicate_requests_total": _counter("Copies of requests, which were dropped.", "service"),
    "replies_dropped_total": _counter("Replies that could not be sent.", "service"),
    "late_replies_total": _counter("Replies that came when nobody waited any more."),
    "retries_total": _counter("Requests to a service that were made again, at another instance if there is one.", "service"),
    "instances_ejected_total": _counter("Instances of a service that get no requests for a while, because they failed.", "service"),
    "instances_lost_total": _counter("Instances of a service that were lost without a farewell.", "service"),
    "incidents_total": _counter("Errors of handlers that nobody expects.", "service"),
    "database_errors_total": _counter("Requests that failed because the database did.", "service"),
    "undo_failed_total": _counter("Compensations that were given up.", "service"),
    "compensations_answered_late_total": _counter("Compensations that were answered after a first failure.", "service"),
    "compensations_waiting": _gauge("Compensations that nobody has answered yet.", "service"),
    "streams_open": _gauge("Streams of bytes that are offered or read."),
    # instances
    "instance_load": _gauge("Messages that the instance handles or has waiting.", "service"),
    "mailbox_waiting": _gauge("Messages that wait for a slot.", "service"),
    "mailbox_slots": _gauge("How many messages the instance handles at once.", "service"),
    "instance_restarts_total": _counter("Crashes of the service that were followed by another start.", "service"),
    "failed_starts_total": _counter("Starts of the service that have failed.", "service"),
    # signals
    "signal_duration_seconds": _seconds("The time from a signal's arrival at its instance to the end of its handler.", "service", "signal"),
    "signals_dropped_total": _counter("Signals that were not sent, or not handled for want of a slot.", "service"),
    "signals_failed_total": _counter("Signals whose handlers have failed.", "service"),
    "signals_refused_total": _counter("Signals from a sender that may not send them.", "service"),
    "signals_unknown_total": _counter("Signals that the instance does not take.", "service"),
    "unreadable_total": _counter("Messages that could not be decoded as an envelope."),
    "retained_dropped_total": _counter("Retained messages that the broker had for a subscription of signals."),
    "hints_malformed_total": _counter("Hints about streams that could not be decoded."),
    "hints_dropped_total": _counter("Hints about the own stream that could not be sent.", "service"),
    # streams
    "events_published_total": _counter("Events that were committed to the stream.", "service"),
    "stream_head_events": _gauge("The number of the last event in the stream.", "service"),
    "events_applied_total": _counter("Events of a publisher that were applied.", "service", "publisher"),
    "subscription_cursor_events": _gauge("The number of the last event of a publisher that was applied.", "service", "publisher"),
    "subscription_lag_events": _gauge("The events of a publisher that are not applied yet.", "service", "publisher"),
    "subscription_blocked": _gauge("1 if the events of a publisher are not applied any more, and an operator is needed.", "service", "publisher"),
    "subscription_held_seconds": _gauge("For how long one event of a publisher holds up those after it.", "service", "publisher"),
    "streams_stopped_total": _counter("How often the events of a publisher have stopped being applied.", "service", "publisher"),
    "stream_forks_total": _counter("How often a publisher was restored, and its subscriber moved to the new epoch.", "service", "publisher"),
    "stream_retries_total": _counter("How often events were applied again after a failure that passes.", "service", "publisher"),
    "events_need_newer_version_total": _counter("Events that wait for a newer version of the service.", "service", "publisher"),
    "events_too_large_total": _counter("Events that the network does not carry.", "service", "publisher"),
    "dead_letters_total": _counter("Events that were set aside as dead letters.", "service", "publisher"),
    "dead_letters_waiting": _gauge("Dead letters that are neither retried nor dropped yet.", "service", "publisher"),
    # storage
    "commit_duration_seconds": _seconds("The time of a commit, until it is durable.", "service"),
    "commit_transactions": Family("histogram", "Transactions that have shared a commit.", ("service",), _SIZES),
    # timers
    "timer_run_seconds": _gauge("For how long the current run of a timer has taken; 0 if none runs.", "service", "timer"),
    "timer_ticks_missed_total": _counter("Ticks at which a timer did not run.", "service", "timer"),
    # tokens
    "revocations_age_seconds": _gauge("The time since the revoked sessions were last known to be complete."),
    "revocation_polls_failed_total": _counter("Requests for revoked sessions that have failed."),
    # the gateway
    "http_request_duration_seconds": _seconds("The time from the head of a client's request to the end of its answer.", "method", "route", "status"),
    "http_requests_running": _gauge("Requests of clients that are being answered."),
    "http_connections": _gauge("Connections of clients."),
    "followers": _gauge("Clients that follow live events."),
    "slow_readers_total": _counter("Clients that were let go because they read live events too slowly."),
    "routes_refused_total": _counter("Routes of a service that another one has.", "service"),
    "manifests_refused_total": _counter("Manifests of a service that were refused.", "service"),
    # the node
    "links_lost_total": _counter("How often the link to the network was lost."),
    "link_up": _gauge("1 if the node is linked to the network."),
    "event_loop_lag_seconds": Family("histogram", "How late the event loop runs what is due, looked at once a second.", (), SECONDS),
    "clock_set_total": _counter("How often the machine's clock was set while the node ran."),
    "process_open_fds": _gauge("File descriptors that are in use."),
    "process_max_fds": _gauge("File descriptors that may be in use."),
    "build_info": _gauge("1, with the versions of Callboard and of a service.", "service", "version", "callboard"),
}  # fmt: skip
"""All metrics by name, without the prefix `callboard_`. Names of processes are Prometheus' own, and have no prefix."""


class Histogram:
    """How many observed values are in each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds: tuple[float, ...] = bounds
        self.counts: list[int] = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def __repr__(self) -> str:
        return f"<Histogram of {self.count} values>"

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value, which stands for so many."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)


class Commits(NamedTuple):
    """Measures commits.

    Attributes:
        seconds: gets the time of each.
        transactions: gets the number of transactions that share it.
        stopwatch: returns the time, in seconds.
    """

    seconds: Histogram
    transactions: Histogram
    stopwatch: Callable[[], float]

    def observe(self, began: float, transactions: int) -> None:
        """Take note of a commit."""
        self.seconds.observe(self.stopwatch() - began)
        self.transactions.observe(transactions)


class Metrics:
    """The metrics of a node."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[Labels, int]] = {}
        self._gauges: dict[str, dict[Labels, Callable[[], float]]] = {}
        self._histograms: dict[str, dict[Labels, Histogram]] = {}
        self.begin()

    def begin(self, **labels: str) -> None:
        """Let the counters with exactly these labels begin at zero."""
        names = tuple(labels)
        for name, family in FAMILIES.items():
            if family.kind == "counter" and family.labels == names:
                self.count(name, 0, **labels)

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        series = self._counters.setdefault(name, {})
        key = tuple(labels.items())
        series[key] = series.get(key, 0) + amount

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Declare a gauge. `read` returns its value each time the metrics are read."""
        self._gauges.setdefault(name, {})[tuple(labels.items())] = read

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Return the histogram with these labels."""
        series = self._histograms.setdefault(name, {})
        key = tuple(labels.items())
        found = series.get(key)
        if found is None:
            found = series[key] = Histogram(FAMILIES[name].buckets)
        return found

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a counter or a gauge, or the number of values in a histogram; 0 for a series that does not exist."""
        key = tuple(labels.items())
        if (read := self._gauges.get(name, {}).get(key)) is not None:
            return read()
        if (histogram := self._histograms.get(name, {}).get(key)) is not None:
            return histogram.count
        return self._counters.get(name, {}).get(key, 0)

    def families(self) -> Iterator[tuple[str, Family, dict[Labels, float | Histogram]]]:
        """Yield the metrics that have series: the name, what it is, and the values by labels, as they are now."""
        for name, family in FAMILIES.items():
            found: dict[Labels, float | Histogram] = {
                **self._counters.get(name, {}),
                **{labels: read() for labels, read in self._gauges.get(name, {}).items()},
                **self._histograms.get(name, {}),
            }
            if found:
                yield name, family, found
