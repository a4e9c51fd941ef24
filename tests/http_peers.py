"""HTTP transports that can reach each other: ports, keys and peers made for the test."""

from collections.abc import Sequence

import msgspec

from config.provision import peer_keys
from runtime.sockets import any_free_port
from transports.http.settings import HttpSettings


def together(private: dict[str, str]) -> str:
    """One JWK set of several."""
    keys = [key for text in private.values() for key in msgspec.json.decode(text)["keys"]]
    return msgspec.json.encode({"keys": keys}).decode()


class HttpPeers:
    """Nodes that speak HTTP with each other: a port for each service's node, and keys for all."""

    def __init__(self, names: Sequence[str], heartbeat: float = 5.0) -> None:
        self.ports = {name: any_free_port() for name in names}
        self.private, self.public = peer_keys(names)
        self._heartbeat = heartbeat
        self._left = list(names)

    def next(self) -> HttpSettings:
        """Of the next service's node."""
        return self.settings(self._left.pop(0)) if self._left else HttpSettings()

    def settings(self, name: str) -> HttpSettings:
        """Of a service's node."""
        return HttpSettings(
            port=self.ports[name], peers=tuple(f"{other}=http://127.0.0.1:{port}" for other, port in self.ports.items()),
            key=self.private[name], peer_keys=self.public, heartbeat=self._heartbeat,
        )  # fmt: skip


class Square:
    """Nodes that may all host and be every service: at each of a few ports anybody may be.

    `reached_at` are the ports at which they are reached: others than those they listen on, where proxies stand between.
    """

    def __init__(self, names: Sequence[str], size: int = 5, heartbeat: float = 0.5) -> None:
        self.ports = [any_free_port() for _ in range(size)]
        self.reached_at = list(self.ports)
        private, self.public = peer_keys(names)
        self.private = together(private)
        self._names = names
        self._heartbeat = heartbeat
        self._given = 0

    def settings(self) -> HttpSettings:
        """Of the next node."""
        port = self.ports[self._given % len(self.ports)]
        self._given += 1
        peers = tuple(f"{name}=http://127.0.0.1:{reached}" for name in self._names for reached in self.reached_at)
        return HttpSettings(port=port, peers=peers, key=self.private, peer_keys=self.public, heartbeat=self._heartbeat)
