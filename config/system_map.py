"""A picture of a system: its services, who calls whom, and whose events and signals reach whom, as Mermaid or SVG."""

from collections.abc import Iterable, Mapping
from html import escape
from itertools import pairwise
from typing import NamedTuple

from gateway.service import Gateway
from runtime.service.service import Definition

_CLIENTS = "clients"
_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 150, 52, 150, 46, 30
"""Pixels of a box, of the space to the right of it and below it, and around all of them."""
_STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1b1f24 } .label { font-size: 11px; fill: #59636e }
rect { fill: #f6f8fa; stroke: #59636e } path { fill: none; stroke: #0969da; stroke-width: 1.5 } .events { stroke: #8250df; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .label { fill: #9198a1 } rect { fill: #212830; stroke: #9198a1 } path { stroke: #4493f8 } .events { stroke: #ab7df8 } }
"""


class Edge(NamedTuple):
    """An arrow of the picture.

    Attributes:
        what: `requests` of one service to another one, or its `events` and signals.
        names: the names of these messages.
    """

    origin: str
    target: str
    what: str
    names: tuple[str, ...] = ()


class SystemMap(NamedTuple):
    """The services in the order of their columns, from the clients on, and the arrows between them."""

    services: tuple[str, ...]
    columns: Mapping[str, int]
    edges: tuple[Edge, ...]


def system_map(definitions: Iterable[Definition]) -> SystemMap:
    """Return the map of the services that are defined so."""
    by_name = {definition.contract.name: definition for definition in definitions}
    gateway = Gateway.contract.name
    edges: list[Edge] = []
    for name, definition in by_name.items():
        if name == gateway:
            continue
        edges += [Edge(name, called.name, "requests") for called in definition.calls if called.name in by_name]
        if any(handler.http is not None for handler in definition.requests.values()):
            edges.append(Edge(gateway, name, "requests"))
        taken: dict[str, list[str]] = {}
        for handler in (*definition.events.values(), *definition.signals.values()):
            taken.setdefault(handler.spec.contract.name, []).append(handler.spec.name)
        edges += [
            Edge(publisher, name, "events", tuple(sorted(names)))
            for publisher, names in taken.items()
            if publisher in by_name and publisher != name
        ]
    if gateway in by_name:
        edges.insert(0, Edge(_CLIENTS, gateway, "requests"))
    names = [*([_CLIENTS] if gateway in by_name else []), *by_name]
    columns = _columns(names, [edge for edge in edges if edge.what == "requests"])
    return SystemMap(tuple(sorted(names, key=lambda name: (columns[name], names.index(name)))), columns, tuple(edges))


def _columns(names: list[str], calls: list[Edge]) -> dict[str, int]:
    """Return the column of each service: one to the right of its callers, as far as they do not call each other."""
    columns = dict.fromkeys(names, 0)
    for _ in names:
        for edge in calls:
            if edge.origin != edge.target:
                columns[edge.target] = min(max(columns[edge.target], columns[edge.origin] + 1), len(names) - 1)
    return {name: sorted(set(columns.values())).index(column) for name, column in columns.items()}


def as_mermaid(found: SystemMap) -> str:
    """Return a map as a flowchart of Mermaid, which GitHub and others show."""
    ids = {name: f"n{number}" for number, name in enumerate(found.services)}
    lines = ["flowchart LR"]
    lines += [f'  {ids[name]}(["{name}"])' if name == _CLIENTS else f'  {ids[name]}["{name}"]' for name in found.services]
    for edge in found.edges:
        arrow = "-->" if edge.what == "requests" else f'-. "{"<br>".join(edge.names)}" .->'
        lines.append(f"  {ids[edge.origin]} {arrow} {ids[edge.target]}")
    return "\n".join(lines) + "\n"


def as_svg(found: SystemMap) -> str:
    """Return a map as a picture, for light and dark pages."""
    places: dict[str, tuple[float, float]] = {}
    rows: dict[int, int] = {}
    for name in found.services:
        column = found.columns[name]
        places[name] = _MARGIN + column * (_WIDTH + _ACROSS), _MARGIN + rows.get(column, 0) * (_HEIGHT + _DOWN)
        rows[column] = rows.get(column, 0) + 1
    width = 2 * _MARGIN + max(x for x, _ in places.values()) + _WIDTH
    height = 2 * _MARGIN + max(y for _, y in places.values()) + _HEIGHT
    described = "; ".join(f"{edge.origin} to {edge.target}: {', '.join(edge.names) or edge.what}" for edge in found.edges)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-labelledby="title description">',
        f'<title id="title">Services and their messages</title><desc id="description">{escape(described)}</desc>',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<path d="M0,0 L8,4 L0,8" style="stroke:context-stroke;stroke-dasharray:none"/></marker></defs>',
    ]
    lines += [_arrow(places, edge) for edge in found.edges]
    for name, (x, y) in places.items():
        middle = f'x="{x + _WIDTH / 2:g}" y="{y + _HEIGHT / 2 + 5:g}"'
        lines.append(f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>')
        lines.append(f'<text {middle} text-anchor="middle">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _arrow(places: Mapping[str, tuple[float, float]], edge: Edge) -> str:
    """Return a curve from one box to another one, which passes between the boxes of the columns that it crosses."""
    (x1, y1), (x2, y2) = places[edge.origin], places[edge.target]
    shift = 8 if edge.what == "events" else -8  # beside that of the other kind
    y1, y2 = y1 + _HEIGHT / 2 + shift, y2 + _HEIGHT / 2 + shift
    if x1 == x2:
        points = [(x1 + _WIDTH, y1), (x2 + _WIDTH, y2)]
        curve = f"C{x1 + _WIDTH + 60:g},{y1:g} {x2 + _WIDTH + 60:g},{y2:g} {x2 + _WIDTH:g},{y2:g}"
    else:
        step = _WIDTH + _ACROSS
        forward = x1 < x2
        points = [(x1 + _WIDTH if forward else x1, y1)]
        crossed = range(round((min(x1, x2) - _MARGIN) / step) + 1, round((max(x1, x2) - _MARGIN) / step))
        for column in crossed if forward else reversed(crossed):
            left = _MARGIN + column * step
            gap = _gap(places, left, y1 + (y2 - y1) * abs(left - x1) / abs(x2 - x1)) + shift
            points += [(left, gap), (left + _WIDTH, gap)] if forward else [(left + _WIDTH, gap), (left, gap)]
        points.append((x2 if forward else x2 + _WIDTH, y2))
        curve = " ".join(_bend(before, after) for before, after in pairwise(points))
    kind = ' class="events"' if edge.what == "events" else ""
    told = escape(f"{edge.origin} to {edge.target}: {', '.join(edge.names) or edge.what}")
    start = f"M{points[0][0]:g},{points[0][1]:g}"
    return f'<path{kind} d="{start} {curve}" marker-end="url(#end)"><title>{told}</title></path>'


def _bend(before: tuple[float, float], after: tuple[float, float]) -> str:
    """Return the part of a path from one point to another, level at both ends."""
    (x1, y1), (x2, y2) = before, after
    middle = (x1 + x2) / 2
    return f"C{middle:g},{y1:g} {middle:g},{y2:g} {x2:g},{y2:g}"


def _gap(places: Mapping[str, tuple[float, float]], left: float, wanted: float) -> float:
    """Return the height between two boxes of a column, or beyond its last one, that is nearest to a wanted one."""
    below = [y + _HEIGHT + _DOWN / 2 for x, y in places.values() if x == left]
    return min(below, key=lambda y: abs(y - wanted))
