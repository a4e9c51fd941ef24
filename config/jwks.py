"""The key sets of other issuers of access tokens, from the URL or the file that the settings name."""

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from config.settings import Settings
from runtime import CallboardError, Unreachable
from runtime.issuers import TRUSTED_URL, FetchKeys, Issuer, IssuerSettings
from runtime.telemetry import logger

T = TypeVar("T")

_log = logger("identity")

_TIMEOUT = 5.0
"""The seconds that an answer may take."""
_LARGEST = 256 * 1024
"""The largest answer, in bytes."""
_DISCOVERY = "/.well-known/openid-configuration"


class _KeySet(msgspec.Struct):
    """A JWK set (RFC 7517, section 5)."""

    keys: list[dict[str, Any]]


class _Provider(msgspec.Struct):
    """What is needed of a provider's metadata (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    jwks_uri: str


def issuers(settings: Settings) -> list[Issuer]:
    """Return the issuers of the settings, whose keys are fetched when the first token of each comes.

    Raises:
        CallboardError: if two have one name, one has neither URL nor file that can be used, or a file cannot be read.
    """
    names = [settings.node.tokens.issuer]
    found: list[Issuer] = []
    for number, one in enumerate(settings.identity.issuers):
        where = f"identity.issuers[{number}]"
        if one.issuer in names:
            raise CallboardError(f"{where}.issuer: {one.issuer!r} is the name of another issuer: name each once")
        names.append(one.issuer)
        found.append(Issuer(one, _fetch(where, one)))
    return found


def _fetch(where: str, settings: IssuerSettings) -> FetchKeys:
    if settings.jwks_file is not None:
        path = Path(settings.jwks_file)
        if settings.jwks_url is not None:
            raise CallboardError(f"{where}: jwks_url and jwks_file are both set: name one of them")
        _read(where, path)

        async def read() -> Sequence[Mapping[str, Any]]:
            try:
                return _read(where, path)
            except CallboardError as error:
                raise _unreachable(settings.issuer, str(error)) from None

        return read
    if settings.jwks_url is None and not TRUSTED_URL.match(settings.issuer):
        raise CallboardError(f"{where}: the issuer is not an HTTPS URL: expected jwks_url or jwks_file beside it")
    context = _trust(where, settings.ca_file)

    async def fetch() -> Sequence[Mapping[str, Any]]:
        url = settings.jwks_url
        if url is None:
            metadata = await _get(settings.issuer, settings.issuer.rstrip("/") + _DISCOVERY, _Provider, context)
            if metadata.issuer != settings.issuer:
                raise _unreachable(settings.issuer, f"its metadata names another issuer, {metadata.issuer!r}")
            url = metadata.jwks_uri
            if not url.startswith("https://") and settings.issuer.startswith("https://"):
                raise _unreachable(settings.issuer, f"its jwks_uri is not an HTTPS URL: {url!r}")
        return (await _get(settings.issuer, url, _KeySet, context)).keys

    return fetch


def _read(where: str, path: Path) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_KeySet).keys
    except OSError as error:
        raise CallboardError(f"{where}.jwks_file: {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CallboardError(f"{where}.jwks_file: {path}: expected a JWK set (RFC 7517), {error}") from error


def _trust(where: str, ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise CallboardError(
            f"{where}.ca_file: {ca_file} cannot be used: {error.strerror}: expected certificates in PEM"
        ) from error


async def _get(issuer: str, url: str, expected: type[T], context: ssl.SSLContext) -> T:
    """Return what a URL of an issuer answers.

    Raises:
        Unreachable: if it does not, or not in time, or not what is expected. The reason is logged.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status != 200:
                raise _unreachable(issuer, f"{url} answered {answer.status}")
            text = await answer.content.read(_LARGEST + 1)
            while len(text) <= _LARGEST and (more := await answer.content.read(_LARGEST)):
                text += more
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise _unreachable(issuer, f"{url} cannot be fetched: {error or type(error).__name__}") from None
    if len(text) > _LARGEST:
        raise _unreachable(issuer, f"{url} answered more than {_LARGEST} bytes")
    try:
        return msgspec.json.decode(text, type=expected)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreachable(issuer, f"{url} answered something else than expected: {error}") from None


def _unreachable(issuer: str, reason: str) -> Unreachable:
    _log.warning("the keys of the issuer %s are not known: %s", issuer, reason)
    return Unreachable(issuer)
