"""How clients send their access tokens: `Authorization` with a scheme, and perhaps a cookie.

Everything behind this reads `Authorization: Bearer …` (RFC 6750, section 2.1).
"""

import re

from gateway.exchange import Exchange
from gateway.http1 import Pairs
from gateway.problems import Problem
from gateway.settings import IdentitySettings

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Credentials:
    """Finds access tokens where the settings say that they are.

    Attributes:
        challenge: what `WWW-Authenticate` asks for.
        standard: whether clients send them as `Authorization: Bearer …`, and in no other way.
    """

    def __init__(self, settings: IdentitySettings) -> None:
        self.challenge: bytes = settings.scheme.encode()
        self.standard: bool = settings.scheme.lower() == "bearer" and not settings.cookie
        self._scheme = settings.scheme.lower().encode()
        self._cookie = re.compile(rb"(?:^|; ?)%b=\"?([^;\"]*)" % re.escape(settings.cookie.encode())) if settings.cookie else None

    def read(self, exchange: Exchange) -> None:
        """Rewrite the field `Authorization` of a request as everything else reads it.

        Raises:
            Problem: 403 if the token is in a cookie and another site has caused the request.
        """
        value = exchange.fields.get(b"authorization")
        token: bytes | None = None
        if value is not None:
            scheme, _, rest = value.partition(b" ")
            token = rest if scheme.lower() == self._scheme else None
        elif self._cookie is not None and (found := self._cookie.search(exchange.fields.get(b"cookie", b""))) is not None:
            if exchange.method not in _SAFE and _is_cross_site(exchange.fields):
                raise Problem(403, "cross-site", "Another site has caused this request: send the access token in Authorization.")
            token = found[1] or None
            exchange.has_cookie = token is not None
        pairs: Pairs = [pair for pair in exchange.pairs if pair[0] != b"authorization"]
        if token is not None:
            pairs.append((b"authorization", b"Bearer " + token))
        # Both may be shared with the next request on the connection
        exchange.pairs = pairs
        exchange.fields = {name: value for name, value in exchange.fields.items() if name != b"authorization"}
        if token is not None:
            exchange.fields[b"authorization"] = b"Bearer " + token


def _is_cross_site(fields: dict[bytes, bytes]) -> bool:
    """Return whether a page of another origin has caused a request, as browsers say (Fetch Metadata; RFC 6454, section 7)."""
    site = fields.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = fields.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != fields.get(b"host", b"").lower()
