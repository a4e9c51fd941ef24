"""Routing: which request of which service a method and path mean, learnt from the manifests of live instances."""

import logging
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from runtime import Malformed
from runtime.network import Manifest, Params, RequestInfo

_log = logging.getLogger("callboard.gateway")


class Route:
    """A REST route and the request it stands for."""

    __slots__ = ("allow", "fields", "info", "needs_body", "service", "status", "takes_body")

    def __init__(self, service: str, info: RequestInfo) -> None:
        assert info.http is not None
        self.service = service
        self.info = info
        self.fields = info.http.path_fields
        self.allow = info.allow
        self.status = info.http.status
        self.takes_body = info.http.method not in ("GET", "DELETE")
        self.needs_body = bool(info.http.body_fields)

    def __repr__(self) -> str:
        assert self.info.http is not None
        return f"<Route {self.info.http.method} {self.info.http.path} -> {self.info.name}>"


class _Step:
    """One place in the tree of paths."""

    __slots__ = ("methods", "named", "parameter")

    def __init__(self) -> None:
        self.named: dict[str, _Step] = {}
        self.parameter: _Step | None = None
        self.methods: dict[str, Route] = {}


class Routes:
    """The routes of all services. A name in a path goes before a parameter.

    Args:
        there: the manifests of live instances.
        gone: those of services that were there before; a route that another has taken since is the other's.
    """

    def __init__(self, there: Iterable[Manifest] = (), gone: Iterable[Manifest] = ()) -> None:
        self._root = _Step()
        self._exact: dict[bytes, dict[str, Route]] = {}
        for manifests, live in ((there, True), (gone, False)):
            for manifest in manifests:
                for info in manifest.requests:
                    if info.http is not None:
                        self._add(Route(manifest.service, info), info.http.method, info.http.path, live=live)

    def _add(self, route: Route, method: str, path: str, *, live: bool) -> None:
        step = self._root
        for segment in path.split("/")[1:]:
            if segment.startswith("{"):
                if step.parameter is None:
                    step.parameter = _Step()
                step = step.parameter
            else:
                step = step.named.setdefault(segment, _Step())
        other = step.methods.setdefault(method, route)
        if live and other.service != route.service:
            _log.error("%s and %s both claim %s %s: the first keeps it", other.service, route.service, method, path)
        if "{" not in path:
            self._exact[path.encode()] = step.methods

    def find(self, raw_path: bytes) -> tuple[dict[str, Route], tuple[str, ...]] | None:
        """The methods that a path has, and the values of its parameters in order; None where there is no such path.

        Raises:
            Malformed: the path's percent-encoding is no UTF-8.
        """
        exact = self._exact.get(raw_path)
        if exact is not None:
            return exact, ()
        segments = [_decoded(segment) for segment in raw_path.split(b"/")[1:]]
        return _walk(self._root, segments, 0, ())


def _walk(step: _Step, segments: list[str], at: int, values: tuple[str, ...]) -> tuple[dict[str, Route], tuple[str, ...]] | None:
    if at == len(segments):
        return (step.methods, values) if step.methods else None
    segment = segments[at]
    if segment in step.named and (found := _walk(step.named[segment], segments, at + 1, values)) is not None:
        return found
    if step.parameter is not None and segment:
        return _walk(step.parameter, segments, at + 1, (*values, segment))
    return None


def _decoded(segment: bytes) -> str:
    try:
        return (unquote_to_bytes(segment) if b"%" in segment else segment).decode()
    except UnicodeDecodeError:
        raise Malformed("the path is not UTF-8") from None


def query_params(query: bytes) -> Params:
    """The query string's parameters, in order.

    Raises:
        Malformed: its percent-encoding is no UTF-8.
    """
    params: list[tuple[str, str]] = []
    for part in query.split(b"&"):
        if not part:
            continue
        name, _, value = part.partition(b"=")
        try:
            params.append((_plain(name), _plain(value)))
        except UnicodeDecodeError:
            raise Malformed("the query is not UTF-8") from None
    return tuple(params)


def _plain(part: bytes) -> str:
    return unquote_to_bytes(part.replace(b"+", b" ")).decode()
