"""The trace context of messages (W3C Trace Context, W3C Baggage): what of it is accepted, and how an event stores it.

Callboard takes part in traces that others begin. It passes on the valid part of a context unchanged, and bounded in size, but for the
parent id where it records a span (`runtime/tracing.py`). A request to another system gets a new parent id (`Context.trace_headers`).
"""

import re
from typing import NamedTuple

from runtime.clock import Random

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03
"""The flags that version 00 defines: sampled, and random trace id."""
_MEMBER = re.compile(
    r"([a-z][_0-9a-z*/-]{0,255}|[0-9a-z][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)
"""A member of a `tracestate` (section 3.3.1.3)."""
_MOST_MEMBERS = 32
_LONGEST_STATE = 512
"""Characters of a `tracestate`, in the order in which section 3.3.1.5 shortens a longer one."""
_LARGE_MEMBER = 128
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = r"[!#-+\--:<-\[\]-~]*"
_BAGGAGE = re.compile(rf"{_NAME}[ \t]*=[ \t]*{_VALUE}([ \t]*;[ \t]*{_NAME}([ \t]*=[ \t]*{_VALUE})?)*")
"""A member of a `baggage` (W3C Baggage, section 3.2)."""
_MOST_BAGGAGE = 64
_LONGEST_BAGGAGE = 8192


class TraceFields(NamedTuple):
    """What travels with a `traceparent`. A field that is missing is empty."""

    tracestate: str
    baggage: str

    def present(self) -> dict[str, str]:
        """Return the fields that are not empty, by name."""
        return {name: value for name, value in self._asdict().items() if value}


def new_trace(random: Random, *, is_sampled: bool = True) -> str:
    """Return the `traceparent` of the root of a new trace."""
    digits = random.hex(48)
    return f"00-{digits[:32]}-{digits[32:]}-{int(is_sampled):02d}"


def child(parent: str, random: Random) -> str:
    """Return the `traceparent` of a request that is made within a trace, with a new parent id."""
    return f"{parent[:36]}{random.hex(16)}{parent[52:]}"


def accept_parent(given: str) -> str | None:
    """Return a `traceparent` as version 00, or None if it is not valid. Of a later version, what version 00 defines counts."""
    match = _PARENT.fullmatch(given)
    if match is None:
        return None
    version, ids, flags, more = match.groups()
    if version == "00":
        return given if more is None else None
    return f"00-{ids}-{int(flags, 16) & _KNOWN_FLAGS:02x}"


def accept_fields(parent: str | None, given: TraceFields) -> TraceFields | None:
    """Return what is valid of the fields that came with a `traceparent`, or None if nothing is.

    Args:
        parent: the `traceparent` that came with them. Without a valid one, the `tracestate` does not count.
        given: the fields as they came; the values of repeated ones are joined by commas.
    """
    state = "" if parent is None or accept_parent(parent) is None else _accept_state(given.tracestate)
    baggage = _accept_baggage(given.baggage)
    return TraceFields(state, baggage) if state or baggage else None


def _accept_state(given: str) -> str:
    """Return a `tracestate`, shortened if it is long. One with an invalid member, or two of one key, is dropped."""
    members = _members(given)
    matches = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matches if match is not None}
    if len(members) > _MOST_MEMBERS or len(keys) < len(members):
        return ""
    sizes = sum(map(len, members)) + len(members) - 1
    for large in (True, False):
        for at in range(len(members) - 1, -1, -1):
            if sizes > _LONGEST_STATE and (len(members[at]) > _LARGE_MEMBER or not large):
                sizes -= len(members.pop(at)) + 1
    return ",".join(members)


def _accept_baggage(given: str) -> str:
    """Return the valid members of a `baggage`, as many as have to be passed on (section 3.3.2)."""
    accepted, size = list[str](), -1
    for member in _members(given):
        size += len(member) + 1
        if len(accepted) == _MOST_BAGGAGE or size > _LONGEST_BAGGAGE:
            break
        if _BAGGAGE.fullmatch(member):
            accepted.append(member)
    return ",".join(accepted)


def _members(given: str) -> list[str]:
    return [member for part in given.split(",") if (member := part.strip(" \t"))]


_REQUEST_ID = "callboard.request_id="
"""The member of a `baggage` with the id of the client's request, where that is not the id of the trace."""


def with_request_id(parent: str, fields: TraceFields | None, request_id: str) -> TraceFields | None:
    """Return the fields that travel with a request, so that `request_id` finds its id in every service.

    Args:
        parent: the `traceparent`.
        fields: the fields as they came. What they say of a request id does not count.
        request_id: the id: letters, digits, and `._-`.
    """
    kept = None if fields is None else without_request_id(fields)
    state, baggage = ("", "") if kept is None else kept
    if request_id != trace_id(parent):
        baggage = f"{_REQUEST_ID}{request_id}{',' if baggage else ''}{baggage}"
    return TraceFields(state, baggage) if state or baggage else None


def without_request_id(fields: TraceFields) -> TraceFields | None:
    """Return fields without the id of the client's request, which is nobody else's concern; None if nothing is left."""
    if _REQUEST_ID not in fields.baggage:
        return fields
    baggage = ",".join(member for member in _members(fields.baggage) if not member.startswith(_REQUEST_ID))
    return TraceFields(fields.tracestate, baggage) if fields.tracestate or baggage else None


def request_id(parent: str, fields: TraceFields | None) -> str:
    """Return the id of the client's request: that of the trace, unless the client has given it another one."""
    if fields is not None and _REQUEST_ID in fields.baggage:
        for member in _members(fields.baggage):
            if member.startswith(_REQUEST_ID):
                return member[len(_REQUEST_ID) :]
    return trace_id(parent)


def trace_id(parent: str) -> str:
    """Return the id of a trace, from a `traceparent`."""
    return parent[3:35]


def as_stored(parent: str, fields: TraceFields | None) -> str:
    """Return a trace context as an event stores it: one line with the `traceparent`, and one for each further field."""
    return parent if fields is None else "\n".join((parent, *fields))


def from_stored(stored: str) -> tuple[str, TraceFields | None]:
    """Return the `traceparent` and the further fields of a stored trace context."""
    parent, *fields = stored.split("\n")
    return parent, TraceFields(*fields) if len(fields) == len(TraceFields._fields) else None
