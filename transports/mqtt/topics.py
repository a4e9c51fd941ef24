"""Topic names, version 1. `docs/wire.md` lists all of them."""

import re
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import quote

from runtime.network import Address, Topic, TransportError, Unsendable
from transports.header_values import decode_text

VERSION = "1"

FOREIGN = "-"
"""The service in the address of a client that is not a node. The address's node is then the Response Topic, unchanged."""

_REMEMBERED = 256
"""Topics longer than this, which no node uses, are not cached."""
_LEVEL = re.compile(r"[A-Za-z0-9_-]+")
_NO_KEY = "-"
"""The level in place of a signal's key if it has none."""


class Topics:
    """The topics and topic filters of a namespace. Every level is checked before it is used; a signal's key is encoded.

    Raises:
        TransportError: from every method that builds a topic, if a level has characters other than letters, digits, `_`, and `-`.
        Unsendable: if a signal's key has no encoding.
    """

    def __init__(self, namespace: str) -> None:
        self._root = f"{namespace}/{VERSION}"
        self._inbox: Callable[[Address, str], str] = lru_cache(4096)(self._inbox_of)
        self.reply: Callable[[Address], str] = lru_cache(4096)(self._reply)
        """Returns the Response Topic that stands for an address. The service that answers appends its name."""
        self.multicast: Callable[[Topic], str] = lru_cache(4096)(self._multicast)
        """Returns the topic of a signal, or of the heads of a stream."""

    def request(self, service: str, request: str, caller: str) -> str:
        """Return the topic of an anycast request: the broker chooses one instance of the service."""
        return self._of("request", service, request, caller)

    def requests(self, service: str) -> str:
        """Return the shared filter by which the instances of a service receive anycast requests."""
        return f"$share/{_checked(service)}/{self._root}/request/{service}/+/+"

    def inboxes(self, address: Address) -> str:
        """Return the filter by which an instance receives unicasts."""
        return self._of("inbox", address.service, address.node) + "/+"

    def _reply(self, address: Address) -> str:
        return self._of("inbox", address.service, address.node)

    def reply_address(self, response_topic: str | None, caller: str) -> Address | None:
        """Return the address for the answer to a request: the caller's own inbox, or the topic that another kind of client names.

        Raises:
            ValueError: if answers may not be sent to the topic, because it is, for example, the inbox of another service.
        """
        if response_topic is None:
            return None
        remembered = len(response_topic) <= _REMEMBERED and len(caller) <= _REMEMBERED
        return (_reply_address if remembered else _reply_address.__wrapped__)(self._root + "/", response_topic, caller)

    def to(self, address: Address, sender: str) -> str:
        """Return the topic on which to publish to an address. For a client that is not a node, this is its Response Topic."""
        return address.node if address.service == FOREIGN else self._inbox(address, sender)

    def _inbox_of(self, address: Address, sender: str) -> str:
        return self._of("inbox", address.service, address.node, sender)

    def _multicast(self, topic: Topic) -> str:
        if topic.kind == "stream":
            return self._of("stream", topic.service)
        return f"{self._of('signal', topic.service, topic.name)}/{key_level(topic.key)}"

    def multicasts(self, topic: Topic, group: str | None) -> str:
        """Return the filter for a signal or for the heads of a stream.

        Args:
            group: The service whose instances share the messages; None to receive every message.
        """
        if topic.kind == "stream":
            pattern = self._of("stream", topic.service)
        else:
            pattern = self._of("signal", topic.service, topic.name) + ("/+" if topic.key is None else f"/{key_level(topic.key)}")
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
def key_level(key: str | None) -> str:
    """Return the topic level of a signal's key. Everything except letters, digits, and `_.~-` is percent-encoded (RFC 3986).

    The level of an empty key is empty. `-` means that there is no key, so that the key `-` is encoded, too.

    Raises:
        Unsendable: if the key has no encoding, because it has a surrogate.
    """
    try:
        return _NO_KEY if key is None else "%2D" if key == _NO_KEY else quote(key, safe="")
    except ValueError as error:
        raise Unsendable(f"the key {key!r:.80} has no encoding: {error}") from None


def key_of(level: str) -> str | None:
    """Return the key of a signal from its topic level. Characters that need not have been encoded are accepted as they are.

    Raises:
        ValueError: if what is percent-encoded is not UTF-8.
    """
    return None if level == _NO_KEY else decode_text(level)


@lru_cache(65536)
def _split(root: str, topic: str) -> tuple[str, ...]:
    return tuple(topic.removeprefix(root).split("/")) if topic.startswith(root) else ()


@lru_cache(65536)
def _reply_address(root: str, response_topic: str, caller: str) -> Address:
    match _split.__wrapped__(root, response_topic):
        case ("inbox", service, node) if service == caller and Topics.is_level(node):
            return Address(service, node)
        case ():
            if response_topic.startswith("$") or not response_topic or any(sign in response_topic for sign in "+#\0"):
                raise ValueError(f"{response_topic!r:.80} cannot be used as a response topic")
            return Address(FOREIGN, response_topic)
        case _:
            raise ValueError(f"the response topic {response_topic!r:.120} is not an inbox of {caller}")


@lru_cache(65536)
def _joined(root: str, kind: str, levels: tuple[str, ...]) -> str:
    return "/".join((root, kind, *map(_checked, levels)))


def _checked(level: str) -> str:
    if not _LEVEL.fullmatch(level):
        raise TransportError(f"{level!r:.80} cannot be part of a topic: expected letters, digits, '_' and '-'")
    return level
