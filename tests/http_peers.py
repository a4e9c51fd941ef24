"""Settings for HTTP transports that can reach each other: ports, keys, and lists of peers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from config.provision import peer_keys
from runtime.sockets import any_free_port
from transports.http.settings import HttpSettings


def merge_key_sets(private: dict[str, str]) -> str:
    """Return one JWK set with the keys of several."""
    keys = [key for text in private.values() for key in msgspec.json.decode(text)["keys"]]
    return msgspec.json.encode({"keys": keys}).decode()


class HttpPeers:
    """One node per service: a port and a key pair for each."""

    def __init__(self, names: Sequence[str], heartbeat: float = 5.0) -> None:
        self.ports = {name: any_free_port() for name in names}
        self.private, self.public = peer_keys(names)
        self._heartbeat = heartbeat
        self._remaining = list(names)

    def next_settings(self) -> HttpSettings:
        """Return the settings of the next service's node; after the last service, the defaults."""
        return self.settings(self._remaining.pop(0)) if self._remaining else HttpSettings()

    def settings(self, name: str, **more: Any) -> HttpSettings:
        """Return the settings of a service's node."""
        return HttpSettings(
            port=self.ports[name], peers=tuple(f"{other}=http://127.0.0.1:{port}" for other, port in self.ports.items()),
            key=self.private[name], peer_keys=self.public, heartbeat=self._heartbeat, **more,
        )  # fmt: skip


class InterchangeablePeers:
    """A few nodes that may each host any service: every node has the keys of all, and looks for every service at every port.

    Attributes:
        ports: The ports that the nodes listen on.
        reached_at: The ports at which the nodes look for each other; they differ from `ports` where proxies are between them.
    """

    def __init__(self, names: Sequence[str], size: int = 5, heartbeat: float = 0.5) -> None:
        self.ports = [any_free_port() for _ in range(size)]
        self.reached_at = list(self.ports)
        private, self.public = peer_keys(names)
        self.private = merge_key_sets(private)
        self._names = names
        self._heartbeat = heartbeat
        self._assigned = 0

    def settings(self) -> HttpSettings:
        """Return the settings of the next node."""
        port = self.ports[self._assigned % len(self.ports)]
        self._assigned += 1
        peers = tuple(f"{name}=http://127.0.0.1:{reached}" for name in self._names for reached in self.reached_at)
        return HttpSettings(port=port, peers=peers, key=self.private, peer_keys=self.public, heartbeat=self._heartbeat)
