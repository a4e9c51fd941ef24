"""Topics, version 1: `docs/wire.md` has the whole of them."""

import re
from functools import lru_cache

from runtime.network import Address, Topic, TransportError

VERSION = "1"

FOREIGN = "-"
"""The service in the address of a client that is none of ours: its node is the Response Topic, as it came."""

_REMEMBERED = 256
"""Longer topics, which are not ours, are not remembered."""
_LEVEL = re.compile(r"[A-Za-z0-9_-]+")


class Topics:
    """The names of topics within a namespace. Every level is checked before it is used.

    Raises:
        TransportError: from every method: a level has other characters than letters, digits, `_` and `-`.
    """

    def __init__(self, namespace: str) -> None:
        self._root = f"{namespace}/{VERSION}"

    def request(self, service: str, request: str, caller: str) -> str:
        """Anycast: to one instance of a service, whichever the broker chooses."""
        return self._of("request", service, request, caller)

    def requests(self, service: str) -> str:
        """The filter of a service's instances for anycast requests; they share it."""
        return f"$share/{_checked(service)}/{self._root}/request/{service}/+/+"

    def inbox(self, to: Address, caller: str) -> str:
        """Unicast: to an instance."""
        return self._of("inbox", to.service, to.node, caller)

    def inboxes(self, address: Address) -> str:
        """The filter of an instance for what is sent to it."""
        return self._of("inbox", address.service, address.node) + "/+"

    def reply(self, address: Address) -> str:
        """The Response Topic that stands for an address; the one who answers adds its name."""
        return self._of("inbox", address.service, address.node)

    def to(self, address: Address, sender: str) -> str:
        """Where something for an address is published; of a client that is none of ours, the Response Topic that it gave."""
        return address.node if address.service == FOREIGN else self.inbox(address, sender)

    def multicast(self, topic: Topic) -> str:
        """Where a signal, or a stream's head, is published."""
        if topic.kind == "stream":
            return self._of("stream", topic.service)
        return self._of("signal", topic.service, topic.name, topic.key)

    def multicasts(self, topic: Topic, group: str | None) -> str:
        """The filter for a topic: of one service's instances together, or of one node alone."""
        if topic.kind == "stream":
            wanted = self._of("stream", topic.service)
        else:
            wanted = self._of("signal", topic.service, topic.name) + ("/+" if topic.key == "-" else f"/{_checked(topic.key)}")
        return wanted if group is None else f"$share/{_checked(group)}/{wanted}"

    def presence(self, address: Address) -> str:
        """Where an instance's manifest is kept."""
        return self._of("presence", address.service, address.node)

    def presences(self, service: str | None) -> str:
        """The filter for a service's manifests, or everybody's."""
        return f"{self._root}/presence/{'+' if service is None else _checked(service)}/+"

    def gone(self, node: str) -> str:
        """Where a node's Will is published."""
        return self._of("gone", node)

    @property
    def all_gone(self) -> str:
        return f"{self._root}/gone/+"

    def levels(self, topic: str) -> tuple[str, ...]:
        """The levels after the root; none if the topic is none of ours."""
        return (_split if len(topic) <= _REMEMBERED else _split.__wrapped__)(self._root + "/", topic)

    @staticmethod
    def is_level(text: str) -> bool:
        """Whether a text can be a level of a topic."""
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
