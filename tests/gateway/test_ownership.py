"""Whatever routes another service announces, it never receives a request that matches a route which was known before."""

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.route_owners import RouteOwners
from gateway.routing import Routes
from runtime.metrics import Metrics
from tests.gateway.routes import manifest, who

_SEGMENT = st.sampled_from(["a", "b", "{x}"])
_PATHS = [f"/{'/'.join(parts)}" for parts in (("a",), ("b",), ("c",), *((one, two) for one in "abc" for two in "abc"),
    *((one, two, three) for one in "abc" for two in "abc" for three in "abc"))]  # fmt: skip


@st.composite
def route(draw: st.DrawFn) -> str:
    """A route of up to three segments, the last of which may be the rest of the path."""
    segments = draw(st.lists(_SEGMENT, min_size=1, max_size=3))
    named = [f"{{p{number}}}" if segment == "{x}" else segment for number, segment in enumerate(segments)]
    if draw(st.booleans()):
        named[-1] = "{rest:path}"
    return f"GET /{'/'.join(named)}"


@given(known=route(), other=route())
@example(known="GET /{rest:path}", other="GET /a/{p1}")
@example(known="GET /{p0}/b/{rest:path}", other="GET /a/{rest:path}")
@example(known="GET /{p0}/b", other="GET /a/{rest:path}")
@example(known="GET /a/{rest:path}", other="GET /a/{p1}/{p2}")
def test_a_new_service_takes_no_request_of_a_known_route(known: str, other: str) -> None:
    alone = Routes([manifest("known", known)])
    owners = RouteOwners((), None, Metrics())
    owners.admit([manifest("known", known)])
    both = owners.admit([manifest("known", known), manifest("other", other)])
    live = Routes(both, (), owners.routes(), owners.prefixes)
    only_other = owners.admit([manifest("other", other)])
    away = Routes(only_other, (), owners.routes(), owners.prefixes)
    for path in _PATHS:
        if who(alone, "GET", path) == "known":
            assert who(live, "GET", path) == "known", path
            assert who(away, "GET", path) == "503 known", path
