"""Counters and gauges of a node, and the W3C trace context of messages."""

import re
from collections.abc import Callable

from runtime.clock import Random

Labels = tuple[tuple[str, str], ...]

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


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
            lines.append(f"# TYPE callboard_{name} gauge")
            lines += [
                f"callboard_{name}{_shown(labels)} {read():g}"
                for labels, read in sorted(gauges.items(), key=lambda item: item[0])
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


def well_formed(given: str) -> str | None:
    """Return a `traceparent` if it is valid, else None (W3C Trace Context, section 3.2)."""
    return given if _TRACEPARENT.fullmatch(given) else None


def new_trace(random: Random) -> str:
    """Return the `traceparent` of the root of a new trace."""
    digits = random.hex(48)
    return f"00-{digits[:32]}-{digits[32:]}-01"
