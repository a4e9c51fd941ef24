"""Routing of a method and path to a request of a service, built from the manifests of live instances."""

from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

from gateway.reservations import Reservations, Template
from runtime import Malformed
from runtime.contract.rest import METHODS, REST, HttpBinding
from runtime.network import Manifest, Params, RequestInfo
from runtime.telemetry import logger

_LOGINS = frozenset({("POST", "/sessions"), ("POST", "/users"), ("POST", "/users/me/password")})
"""The routes whose requests make auth hash a password. They have separate limits, because hashing is slow on purpose."""

_log = logger("gateway")


class Route:
    """A REST route of a service. Two versions of the service may map it to different requests.

    Attributes:
        name: the method and the path without the names of its parameters, such as `GET /rides/{}`.
        allow: who may make a request by this route, to one version at least.
        needs_body: whether every version needs a body.
        repeatable: whether a request may be made again in every version, without an idempotency key or with one.
        is_once: whether a version takes it once per idempotency key.
        is_contested: whether some requests that match it may belong to another service.
        bindings: how each version binds it.
    """

    __slots__ = (
        "_requests",
        "allow",
        "bindings",
        "is_contested",
        "is_login",
        "is_once",
        "name",
        "needs_body",
        "repeatable",
        "repeatable_with_key",
        "service",
        "takes_body",
        "takes_only_stream",
        "takes_stream",
        "template",
    )

    def __init__(self, service: str, info: RequestInfo) -> None:
        assert info.http is not None
        self.service = service
        self.bindings: list[HttpBinding] = []
        self.name = info.http.route
        self.takes_body = info.http.method not in ("GET", "DELETE")
        self.template: Template = (info.http.method, *info.http.shape[1].split("/")[1:])
        self.is_contested = False
        self.is_login = (info.http.method, info.http.path) in _LOGINS
        self.allow = info.allow
        self.is_once = False
        self.needs_body = self.repeatable = self.repeatable_with_key = True
        self._requests: list[str] = []
        self.add(info)

    def __repr__(self) -> str:
        return f"<Route {self.name} -> {', '.join(self._requests)}>"

    def add(self, info: RequestInfo) -> None:
        """Add what one version of the service maps the route to."""
        assert info.http is not None
        if info.name not in self._requests:
            self._requests.append(info.name)
        self.bindings.append(info.http)
        streams = [http.raw_kind == "stream" for http in self.bindings]
        self.takes_stream, self.takes_only_stream = any(streams), all(streams)
        self.allow = self.allow | info.allow
        self.is_once = self.is_once or info.once
        required = info.request.get("required", ())
        self.needs_body = self.needs_body and any(name in required for name in (*info.http.body_fields, *info.http.form_fields))
        self.repeatable = self.repeatable and (info.http.method == "GET" or info.idempotent)
        self.repeatable_with_key = self.repeatable_with_key and (info.http.method == "GET" or info.idempotent or info.once)


class _PathNode:
    """A node in the tree of path segments: its children by literal segment, its child for a parameter, its methods, and those with any rest of the path."""

    __slots__ = ("literals", "methods", "parameter", "rest")

    def __init__(self) -> None:
        self.rest: dict[str, Route] = {}
        self.literals: dict[str, _PathNode] = {}
        self.parameter: _PathNode | None = None
        self.methods: dict[str, Route] = {}


class Routes:
    """The routes of all services. A literal path segment takes precedence over a parameter if it has a route for the method.

    Args:
        live: the manifests of live instances, one of each version. A route of several versions is one route.
        absent: the manifests of versions that have no live instance. Live versions take precedence over them where both
            have the same route.
        owners: the owner of each route that has one, also of those that no manifest contains.
        prefixes: the owner of all paths below a prefix. No other service receives requests for them by a parameter.
        forgotten: the services that are not waited for any more.

    Attributes:
        own_fields: the names of the header fields that requests are read from, and of those that responses have, each after a comma.
    """

    def __init__(
        self,
        live: Iterable[Manifest] = (),
        absent: Iterable[Manifest] = (),
        owners: Mapping[Template, str] | None = None,
        prefixes: Mapping[Template, str] | None = None,
        forgotten: frozenset[str] = frozenset(),
    ) -> None:
        self._root = _PathNode()
        self._exact: dict[bytes, dict[str, Route]] = {}
        self._live: set[str] = set()
        self._has_rest = False
        self._forgotten = forgotten
        routes: list[Route] = []
        for manifests, is_live in ((live, True), (absent, False)):
            for manifest in manifests:
                if is_live:
                    self._live.add(manifest.service)
                routes += [
                    route
                    for info in manifest.requests
                    if info.http is not None
                    and (route := self._add(manifest.service, info, info.http, is_live=is_live)) is not None
                ]
        bindings = [http for route in routes for http in route.bindings]
        read = {found.name for http in bindings for found in http.inputs if found.kind == "header"}
        sent = {found.name for http in bindings for found in http.outputs if found.kind == "header"}
        self.own_fields: tuple[bytes, bytes] = (_listed(read), _listed(sent))
        self._reservations = Reservations(owners or {}, prefixes or {}, [(route.template, route.service) for route in routes])
        for route in routes:
            route.is_contested = self._reservations.contest(route.template, route.service)

    def _add(self, service: str, info: RequestInfo, http: HttpBinding, *, is_live: bool) -> Route | None:
        """Add the route of a request, and return it if it is new."""
        node, methods = self._root, None
        for segment in http.path.split("/")[1:]:
            if segment.endswith(REST):
                methods, self._has_rest = node.rest, True
            elif segment.startswith("{"):
                if node.parameter is None:
                    node.parameter = _PathNode()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _PathNode())
        methods = node.methods if methods is None else methods
        other = methods.get(http.method)
        if other is None:
            route = methods[http.method] = Route(service, info)
            if "{" not in http.path:
                self._exact[http.path.encode()] = node.methods
            return route
        if is_live and other.service == service:
            other.add(info)
        elif is_live:
            _log.error("%s and %s both claim %s %s; the first one keeps it", other.service, service, http.method, http.path)
        return None

    def find(self, method: str, raw_path: bytes) -> tuple[Route, tuple[str, ...]] | None:
        """Return the route of a method and path and the values of its parameters in order, or None if there is none.

        A request that belongs to a service gets no route of another one.

        Raises:
            Malformed: if the percent-decoded path is not UTF-8.
        """
        exact = self._exact.get(raw_path)
        if exact is not None and method in exact:
            return exact[method], ()
        segments = _decode_path(raw_path)
        found = _walk(self._root, method, segments, 0, (), None) if self._has_rest else _find(self._root, method, segments)
        if found is None or not found[0].is_contested:
            return found
        route = found[0]
        owner = self._reservations.owner(method, segments, (route.template, route.service))
        return found if owner == route.service else _walk(self._root, method, segments, 0, (), owner)

    def methods(self, raw_path: bytes) -> set[str]:
        """Return the methods that have a route for a path, or would have one if its owner were not away.

        Raises:
            Malformed: if the percent-decoded path is not UTF-8.
        """
        return {
            method for method in METHODS if self.find(method, raw_path) is not None or self.awaited(method, raw_path) is not None
        }

    def awaited(self, method: str, raw_path: bytes) -> str | None:
        """Return the service that is away and to which a request without a route belongs, or None if there is none.

        Raises:
            Malformed: if the percent-decoded path is not UTF-8.
        """
        owner = self._reservations.owner(method, _decode_path(raw_path))
        return None if owner in self._live or owner in self._forgotten else owner


def _listed(names: set[str]) -> bytes:
    return "".join(f", {name}" for name in sorted(names)).encode()


def _find(node: _PathNode, method: str, segments: list[str]) -> tuple[Route, tuple[str, ...]] | None:
    """Return the first match in the tree. In most paths, no segment has both a literal and a parameter that it may match."""
    root, values = node, list[str]()
    for segment in segments:
        child = node.literals.get(segment)
        if child is not None:
            if node.parameter is not None:
                return _walk(root, method, segments, 0, (), None)
            node = child
        elif node.parameter is not None and segment:
            values.append(segment)
            node = node.parameter
        else:
            return None
    route = node.methods.get(method)
    return None if route is None else (route, tuple(values))


def _walk(
    node: _PathNode, method: str, segments: list[str], at: int, values: tuple[str, ...], service: str | None
) -> tuple[Route, tuple[str, ...]] | None:
    """Return the first match in the tree, of any service or of the given one."""
    if at == len(segments):
        route = node.methods.get(method)
        return None if route is None or service not in (None, route.service) else (route, values)
    found = _walk_on(node, method, segments, at, values, service)
    route = node.rest.get(method)
    if found is not None or route is None or service not in (None, route.service) or not any(segments[at:]):
        return found
    return route, (*values, "/".join(segments[at:]))


def _walk_on(
    node: _PathNode, method: str, segments: list[str], at: int, values: tuple[str, ...], service: str | None
) -> tuple[Route, tuple[str, ...]] | None:
    """Return the first match that takes the next segment alone."""
    segment = segments[at]
    if (
        segment in node.literals
        and (found := _walk(node.literals[segment], method, segments, at + 1, values, service)) is not None
    ):
        return found
    if node.parameter is not None and segment:
        return _walk(node.parameter, method, segments, at + 1, (*values, segment), service)
    return None


def _decode_path(raw_path: bytes) -> list[str]:
    if raw_path.isascii() and b"%" not in raw_path:
        return raw_path.decode().split("/")[1:]
    return [_decode_segment(segment) for segment in raw_path.split(b"/")[1:]]


def _decode_segment(segment: bytes) -> str:
    try:
        return (unquote_to_bytes(segment) if b"%" in segment else segment).decode()
    except UnicodeDecodeError:
        raise Malformed("the path is not UTF-8") from None


def query_params(query: bytes) -> Params:
    """Return the parameters of a query string, in order.

    Raises:
        Malformed: if the percent-decoded query is not UTF-8.
    """
    params: list[tuple[str, str]] = []
    for part in query.split(b"&"):
        if not part:
            continue
        name, _, value = part.partition(b"=")
        try:
            params.append((_decode_query_part(name), _decode_query_part(value)))
        except UnicodeDecodeError:
            raise Malformed("the query is not UTF-8") from None
    return tuple(params)


def _decode_query_part(part: bytes) -> str:
    return unquote_to_bytes(part.replace(b"+", b" ")).decode()
