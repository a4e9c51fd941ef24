"""Topic names, version 1. `docs/wire.md` lists all of them."""

import re
from functools import lru_cache

from runtime.network import Address, Topic, TransportError

VERSION = "1"

FOREIGN = "-"
"""The service in the address of a client that is not a node. The address's node is then the Response Topic, unchanged."""

_REMEMBERED = 256
"""Topics longer than this, which no node uses, are not cached."""
_LEVEL = re.compile(r"[A-Za-z0-9_-]+")


class Topics:
    """The topics and topic filters of a namespace. Every level is checked before it is used.

    Raises:
        TransportError: from every method that builds a topic, if a level has characters other than letters, digits, `_`, and `-`.
    """

    def __init__(self, namespace: str) -> None:
        self._root = f"{namespace}/{VERSION}"

    def request(self, service: str, request: str, caller: str) -> str:
        """Return the topic of an anycast request: the broker chooses one instance of the service."""
        return self._of("request", service, request, caller)

    def requests(self, service: str) -> str:
        """Return the shared filter by which the instances of a service receive anycast requests."""
        return f"$share/{_checked(service)}/{self._root}/request/{service}/+/+"

    def inbox(self, to: Address, caller: str) -> str:
        """Return the topic of a unicast to an instance."""
        return self._of("inbox", to.service, to.node, caller)

    def inboxes(self, address: Address) -> str:
        """Return the filter by which an instance receives unicasts."""
        return self._of("inbox", address.service, address.node) + "/+"

    def reply(self, address: Address) -> str:
        """Return the Response Topic that stands for an address. The service that answers appends its name."""
        return self._of("inbox", address.service, address.node)

    def to(self, address: Address, sender: str) -> str:
        """Return the topic on which to publish to an address. For a client that is not a node, this is its Response Topic."""
        return address.node if address.service == FOREIGN else self.inbox(address, sender)

    def multicast(self, topic: Topic) -> str:
        """Return the topic of a signal, or of the heads of a stream."""
        if topic.kind == "stream":
            return self._of("stream", topic.service)
        return self._of("signal", topic.service, topic.name, topic.key)

    def multicasts(self, topic: Topic, group: str | None) -> str:
        """Return the filter for a signal or for the heads of a stream.

        Args:
            group: The service whose instances share the messages; None to receive every message.
        """
        if topic.kind == "stream":
            pattern = self._of("stream", topic.service)
        else:
            pattern = self._of("signal", topic.service, topic.name) + ("/+" if topic.key == "-" else f"/{_checked(topic.key)}")
        return pattern if group is None else f"$share/{_checked(group)}/{pattern}"

    def presence(self, address: Address) -> str:
        """Return the topic of an instance's retained manifest."""
        return self._of("presence", address.service, address.node)

    def presences(self, service: str | None) -> str:
        """Return the filter for the manifests of a service, or of every service for None."""
        return f"{self._root}/presence/{'+' if service is None else _checked(service)}/+"

    def gone(self, node: str) -> str:
        """Return the topic of a node's Will."""
        return self._of("gone", node)

    @property
    def all_gone(self) -> str:
        """The filter for the Wills of all nodes."""
        return f"{self._root}/gone/+"

    def levels(self, topic: str) -> tuple[str, ...]:
        """Return the levels of a topic after the root; none if the topic is outside of the namespace."""
        return (_split if len(topic) <= _REMEMBERED else _split.__wrapped__)(self._root + "/", topic)

    @staticmethod
    def is_level(text: str) -> bool:
        """Return whether a text can be a level of a topic."""
        return _LEVEL.fullmatch(text) is not None

    def _of(self, kind: str, *levels: str) -> str:
        return _joined(self._root, kind, levels)


@lru_cache(65536)
def _split(root: str, topic: str) -> tuple[str, ...]:
    return tuple(topic.removeprefix(root).split("/")) if topic.startswith(root) else ()


@lru_cache(65536)
def _joined(root: str, kind: str, levels: tuple[str, ...]) -> str:
    return "/".join((root, kind, *map(_checked, levels)))


def _checked(level: str) -> str:
    if not _LEVEL.fullmatch(level):
        raise TransportError(f"{level!r:.80} cannot be part of a topic: expected letters, digits, '_' and '-'")
    return level
