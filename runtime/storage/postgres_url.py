"""URLs of databases on PostgreSQL."""

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from runtime.contract.errors import UsageError

_EXPECTED = "expected postgresql://user:password@host:5432/database, with any of / ? # [ ] @ in the password percent-encoded"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@]*)(:[0-9]+)?")


class PostgresUrl:
    """A URL such as `postgresql://user:password@host:5432/database?sslmode=verify-full`, perhaps with several hosts.

    Args:
        text: the URL.

    Raises:
        UsageError: if it is none. The message does not contain it.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(text)
        except ValueError:
            raise UsageError(_EXPECTED) from None
        user, _, hosts = parts.netloc.rpartition("@")
        if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/"):
            raise UsageError(_EXPECTED)
        if "@" in parts.path or parts.fragment or not all(map(_HOST.fullmatch, hosts.split(","))):
            raise UsageError(_EXPECTED)  # what looks like the database may be the rest of the password
        self._parts = parts
        self._user = user
        self.hosts: tuple[str, ...] = tuple(hosts.split(","))
        self.database: str = unquote(parts.path.strip("/"))

    def __repr__(self) -> str:
        return f"postgresql://{','.join(self.hosts)}/{self.database}"  # without the user's password

    def without_password(self) -> tuple[str, str | None]:
        """Return the URL without the password, and the password, for programs that get it elsewhere."""
        user, separator, password = self._user.partition(":")
        hosts = ",".join(self.hosts)
        netloc = f"{user}@{hosts}" if user else hosts
        pairs = parse_qsl(self._parts.query, keep_blank_values=True)
        query = urlencode([pair for pair in pairs if pair[0] != "password"], quote_via=quote)
        found = unquote(password) if separator else dict(pairs).get("password")
        return urlunsplit(self._parts._replace(netloc=netloc, query=query)), found

    def of_host(self, host: str) -> str:
        """Return the URL with only this host."""
        netloc = f"{self._user}@{host}" if self._user else host
        query = urlencode([pair for pair in parse_qsl(self._parts.query) if pair[0] != "target_session_attrs"])
        return urlunsplit(self._parts._replace(netloc=netloc, query=query))
