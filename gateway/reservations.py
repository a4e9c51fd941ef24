"""To whom a request belongs, although the tree of routes may not know it: its owner is away, or has a whole prefix."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from runtime.contract.rest import shape_of

Template = tuple[str, ...]
"""The segments of a path, with `{}` for each parameter and `{*}` for the rest of the path.

That of a route begins with the method, so `("GET", "users", "{}")`.
"""


def template(route: str) -> Template:
    """Return the template of a route (`GET /users/{id}`) or of a prefix (`/users`). A slash at the end does not matter."""
    method, _, path = route.rpartition(" ")
    segments = [shape_of(segment) for segment in path.split("/") if segment]
    return (method, *segments) if method else tuple(segments)


def hides(route: Template, known: Template) -> bool:
    """Return whether a route would receive requests of a known one, because it is equal or has the first literal segment."""
    if route == known:
        return True
    if known[-1] == "{*}" and route[-1] != "{*}":  # the tree tries every other match first
        return route[0] == known[0] and len(route) >= len(known) and _overlaps(known[1:-1], route[1:])
    if known[-1] == "{*}" and len(route) > len(known):
        return route[0] == known[0] and _overlaps(known[1:-1], route[1:])
    if route[-1] == "{*}":
        if len(known) < len(route):
            return False
        route, known = route[:-1], known[: len(route) - 1]  # of what begins alike, the tree tries the rest last
        pairs = [(new, old) for new, old in zip(route, known, strict=True) if new != old]
        return bool(pairs) and all("{}" in pair for pair in pairs) and pairs[0][1] == "{}"
    if route[0] != known[0] or len(route) != len(known):
        return False
    pairs = [(new, old) for new, old in zip(route, known, strict=True) if new != old]
    return all("{}" in pair for pair in pairs) and (not pairs or pairs[0][1] == "{}")


def best_prefix(prefixes: Iterable[Template], path: Sequence[str]) -> Template | None:
    """Return the longest prefix that a path, or the path of a template, is below; of equals, the one with the first literal."""
    return max(
        (prefix for prefix in prefixes if _covers(prefix, path)), key=lambda prefix: (len(prefix), _order(prefix)), default=None
    )


class Reservations:
    """The owners of routes that are not announced now, and of prefixes.

    Args:
        routes: the owner of each route, from the settings or stored.
        prefixes: the owner of each prefix.
        announced: the routes in the tree with their services. The tree itself keeps these for their owners.
    """

    def __init__(
        self, routes: Mapping[Template, str], prefixes: Mapping[Template, str], announced: Iterable[tuple[Template, str]] = ()
    ) -> None:
        self._routes = dict(routes.items() - {(route, service) for route, service in announced})
        self._prefixes = dict(prefixes)

    def contest(self, route: Template, service: str) -> bool:
        """Return whether some requests that match a route may belong to another service than the one that announces it."""
        if "{}" not in route and "{*}" not in route:
            return False  # then the owner of all its requests was known when the route was admitted
        path = route[1:]
        if path[-1] == "{*}" and any(
            owner != service and known[0] == route[0] and len(known) >= len(route) and _overlaps(path[:-1], known[1:])
            for known, owner in self._routes.items()
        ):
            return True
        return any(owner != service and hides(known, route) for known, owner in self._routes.items()) or any(
            owner != service and not _covers(prefix, path) and _overlaps(prefix, path) for prefix, owner in self._prefixes.items()
        )

    def owner(self, method: str, path: Sequence[str], found: tuple[Template, str] | None = None) -> str | None:
        """Return the service that a request belongs to, or None if nobody has reserved it.

        Args:
            path: the segments of the request's path.
            found: the route that the tree has for it, with its service.
        """
        prefix = best_prefix(self._prefixes, path)
        matching = [*self._matching(method, path), *([] if found is None else [found])]
        below = [(route, owner) for route, owner in matching if prefix is None or _covers(prefix, route[1:])]
        if below:
            return max(below, key=lambda match: _order(match[0]))[1]
        return None if prefix is None else self._prefixes[prefix]

    def _matching(self, method: str, path: Sequence[str]) -> Iterator[tuple[Template, str]]:
        for route, owner in self._routes.items():
            if route[0] == method and _matches(route[1:], path):
                yield route, owner


def _matches(template: Template, path: Sequence[str]) -> bool:
    """Return whether a path matches a template without its method."""
    if template[-1:] == ("{*}",):
        return _covers(template[:-1], path) and any(path[len(template) - 1 :])
    return len(template) == len(path) and _covers(template, path)


def _covers(prefix: Template, path: Sequence[str]) -> bool:
    """Return whether all that matches a path, or the path of a template, is below a prefix."""
    return len(prefix) <= len(path) and all(
        own == segment or (own == "{}" and segment != "") for own, segment in zip(prefix, path, strict=False)
    )


def _overlaps(prefix: Template, path: Template) -> bool:
    """Return whether some paths that match a template are below a prefix."""
    return len(prefix) <= len(path) and all(
        own == segment or "{}" in (own, segment) or "{*}" in (own, segment) for own, segment in zip(prefix, path, strict=False)
    )


def _order(route: Template) -> tuple[int, ...]:
    """Return what is greatest for the template that the tree of routes tries first: the one with the first literal segment."""
    return tuple({"{}": 1, "{*}": 0}.get(segment, 2) for segment in route)
