"""The console credential of development: a user who can read the database folder may act as any user of the system that runs on it.

`dev` and `up` accept tokens that are signed with a key in this folder, and the commands sign them. So they need no login, and work with
any auth service or none. No other process accepts such tokens.
"""

import base64
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from config.settings import Settings
from runtime import CallboardError
from runtime.issuers import IssuerSettings

_NAME = "callboard-console"
_PRIVATE, _PUBLIC = "console-key.pem", "console-keys.json"
_LIFETIME = 600
"""Seconds for which a token is valid. Long commands sign another one."""


def with_console(settings: Settings) -> Settings:
    """Return the settings with the console as an issuer of access tokens. Creates its key on the first start.

    Raises:
        CallboardError: if the key cannot be written.
    """
    folder = Path(settings.database.folder)
    try:
        if not ((folder / _PRIVATE).exists() and (folder / _PUBLIC).exists()):
            _create(folder)
    except OSError as error:
        raise CallboardError(f"{folder}: {error.strerror}: choose another folder with CALLBOARD_DATABASE__FOLDER") from error
    issuer = IssuerSettings(
        _NAME, _NAME, jwks_file=str((folder / _PUBLIC).absolute()), algorithms=("EdDSA",), max_lifetime=_LIFETIME
    )
    replace = msgspec.structs.replace
    return replace(settings, identity=replace(settings.identity, issuers=(*settings.identity.issuers, issuer)))


def console_token(settings: Settings, subject: str = "console", roles: Sequence[str] = ("operator", "admin")) -> str | None:
    """Return an access token of a user for the system that runs on the database folder, or None if there is no key to sign it.

    Args:
        subject: the user's id.
        roles: the user's roles.
    """
    import jwt

    try:
        key = (Path(settings.database.folder) / _PRIVATE).read_bytes()
    except OSError:
        return None
    now = int(time.time())
    claims = {"iss": _NAME, "aud": _NAME, "sub": subject, "roles": list(roles), "iat": now - 1, "exp": now + _LIFETIME - 1}
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": _NAME})


def _create(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": _NAME, "x": x, "use": "sig", "alg": "EdDSA"}
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for name, content in ((_PRIVATE, pem), (_PUBLIC, msgspec.json.encode({"keys": [jwk]}))):
        path = folder / name
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(content)
