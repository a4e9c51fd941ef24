"""What a check of `callboard doctor` finds."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        what: the subject of the check.
        state: the result. Only a fault makes `callboard doctor` fail.
        said: details, with advice if the state is not ok.
    """

    what: str
    state: Literal["ok", "warning", "fault"]
    said: str


def ok(what: str, said: str) -> Finding:
    """Return that a check has found nothing wrong."""
    return Finding(what, "ok", said)


def fault(what: str, said: str) -> Finding:
    """Return that a check has found a fault."""
    return Finding(what, "fault", said)
