"""The states of a link, and the transitions between them."""

import enum


class LinkState(enum.Enum):
    """The states of a link.

    A link that has never been opened is `NEW`. While it is open it goes around `CONNECTING`, `UP`, and `DOWN`, until this
    node closes it (`CLOSED`) or there is no point in reconnecting (`FAILED`).
    """

    NEW = enum.auto()
    """Not opened yet."""
    CONNECTING = enum.auto()
    """Connecting to the broker, or subscribing on a new connection."""
    UP = enum.auto()
    """Connected, with every subscription in place."""
    DOWN = enum.auto()
    """The connection was lost or could not be made. The next attempt follows after a pause."""
    FAILED = enum.auto()
    """Lost for good."""
    CLOSED = enum.auto()
    """Closed by this node."""

    def may_become(self, state: "LinkState") -> bool:
        """Return whether the transition from this state to another one exists."""
        return state in _TRANSITIONS[self]

    @property
    def is_settled(self) -> bool:
        """Whether waiting for a connection is over: there is one, or there will be none."""
        return self in (LinkState.UP, LinkState.FAILED, LinkState.CLOSED)


_TRANSITIONS: dict[LinkState, tuple[LinkState, ...]] = {
    LinkState.NEW: (LinkState.CONNECTING, LinkState.CLOSED),
    LinkState.CONNECTING: (LinkState.UP, LinkState.DOWN, LinkState.FAILED, LinkState.CLOSED),
    LinkState.UP: (LinkState.DOWN, LinkState.FAILED, LinkState.CLOSED),
    LinkState.DOWN: (LinkState.CONNECTING, LinkState.FAILED, LinkState.CLOSED),
    LinkState.FAILED: (LinkState.CLOSED,),
    LinkState.CLOSED: (),
}
