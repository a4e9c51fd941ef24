"""The addresses of clients: which header fields count behind trusted proxies, and which addresses share a limit."""

import functools
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from gateway.problems import Headers
from runtime import StartError

_FORWARDED, _X_FORWARDED_FOR = b"forwarded", b"x-forwarded-for"
_PAIR = r'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*+"|[^\s";,]*+)'
"""A parameter of a `Forwarded` field (RFC 7239, section 4)."""
_LAST_ELEMENT = re.compile(rf"(?:\A|,)\s*+((?:{_PAIR})?(?:\s*+;\s*+(?:{_PAIR})?)*+)\s*\Z")
"""The last element of a `Forwarded` field. The match of `search` is the longest one, so no comma in quotes begins an element.

The text before it may be anything. If a quote were open there, the element could not end as it does.
"""
_NODE = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.]+)\](?::\w+)?|(?P<v4>[0-9.]+)(?::\w+)?|(?P<bare>[0-9A-Fa-f:.]+)", re.ASCII)
"""An address as a proxy writes it: with or without a port, IPv6 with or without brackets."""
_MAX_HOPS = 32
"""Proxies whose entries are read, the nearest first."""

_Address = IPv4Address | IPv6Address


class Addresses:
    """Finds the address of the client that sent a request.

    The peer of the connection is the client, unless it is a trusted proxy. Then the entries that proxies added to
    `Forwarded` (RFC 7239) or `X-Forwarded-For` are read from right to left: each was written by the hop before, so the first
    that is not a trusted proxy is the client. What is left of it came from the client and does not count.

    Args:
        trusted: the networks of the proxies.

    Raises:
        StartError: if one of them is not a network.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._trusted = [_network(text) for text in trusted]
        self.has_trusted = bool(self._trusted)
        """Whether there are trusted proxies. Without any, the peer of a connection is always the client."""
        self._is_trusted = functools.lru_cache(4096)(self._in_a_trusted_network)

    def client(self, peer: str, headers: Headers) -> str:
        """Return the address of the client.

        If the two fields name different clients, a proxy has passed on the field of the client unchanged. Nobody knows which
        field that is, so the proxy itself counts as the client.

        Args:
            peer: the address at the other end of the connection.
            headers: the header fields of the request.
        """
        if not self._trusted or not self._is_trusted(peer):
            return peer
        found: set[str] = set()
        for name, read in ((_FORWARDED, _forwarded), (_X_FORWARDED_FOR, _x_forwarded_for)):
            text = ",".join(value.decode("latin-1") for given, value in headers if given == name)
            if hops := read(text):
                found.add(self._walk(peer, hops))
        return found.pop() if len(found) == 1 else peer

    def _walk(self, peer: str, hops: Sequence[str]) -> str:
        """Return the first address, the nearest hop first, that is not a trusted proxy. An unreadable entry ends the walk."""
        address = peer
        for hop in hops[:_MAX_HOPS]:
            if not self._is_trusted(address):
                break
            parsed = _parse(hop)
            if parsed is None:
                break
            address = parsed
        return address

    def _in_a_trusted_network(self, address: str) -> bool:
        try:
            parsed = _unmapped(ip_address(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


@functools.lru_cache(4096)
def source(address: str) -> str:
    """Return what an address is counted as: itself, or of IPv6 its /64 network, which one client may have whole."""
    if ":" not in address:
        return address
    try:
        parsed = _unmapped(IPv6Address(address.partition("%")[0]))
    except ValueError:
        return address
    return str(parsed) if isinstance(parsed, IPv4Address) else str(IPv6Network((parsed, 64), strict=False))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise StartError(
            f"gateway.trusted_proxies: {text!r}: expected an address or a network, such as 10.0.0.0/8 or fd00::/8 ({error})"
        ) from None


def _unmapped(address: _Address) -> _Address:
    """Return an IPv4 address for one that a dual-stack socket reports as IPv6."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _parse(hop: str) -> str | None:
    match = _NODE.fullmatch(hop)
    if match is None:
        return None
    try:
        return str(_unmapped(ip_address(match["v6"] or match["v4"] or match["bare"])))
    except ValueError:
        return None


def _x_forwarded_for(text: str) -> list[str]:
    """Return the entries, the nearest hop first. Empty ones do not count (RFC 9110, section 5.6.1)."""
    return [hop for entry in reversed(text.split(",")) if (hop := entry.strip())]


def _forwarded(text: str) -> list[str]:
    """Return the `for` parameter of each element, the nearest hop first, and "unknown" for an element without one.

    Empty elements do not count. Before one that cannot be read, nothing counts: no proxy has written it.
    """
    hops = list[str]()
    while len(hops) < _MAX_HOPS and (text := text.rstrip(" \t,")):
        match = _LAST_ELEMENT.search(text)
        if match is None:
            break
        given = {name.lower(): value for name, value in re.findall(_PAIR, match[1])}
        value = given.get("for", "")
        hops.append((re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value) or "unknown")
        text = text[: match.start()]
    return hops
