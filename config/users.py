"""What the commands know of Callboard's own auth service: the example users of development, and whether its hashes are safe."""

import secrets
from pathlib import Path

import msgspec

from config import compose
from config.settings import EXAMPLE_USERS, Settings
from runtime import CallboardError, Node
from services.auth.service import Auth, AuthSettings, SeedUser


def with_users(settings: Settings) -> Settings:
    """Return the settings with the example users and their password added, if Callboard's auth service logs them in."""
    password = settings.dev.password or _password(Path(settings.database.folder))
    replace = msgspec.structs.replace
    settings = replace(settings, dev=replace(settings.dev, password=password))
    if not has_our_auth(settings):
        return settings
    own: AuthSettings = compose.own_settings(settings, Auth.contract.name)
    users = tuple(
        msgspec.convert({"email": email, "role": role, "password": password}, SeedUser) for email, role in EXAMPLE_USERS.items()
    )
    return compose.with_own_settings(settings, Auth.contract.name, replace(own, users=(*users, *own.users)))


def has_our_auth(settings: Settings) -> bool:
    """Return whether Callboard's own auth service is part of the project, or one that is made from it."""
    found = compose.catalogue(settings).get(Auth.contract.name)
    return found is not None and issubclass(found, Auth)


def warn_if_hashing_is_weak(node: Node) -> None:
    """Warn once a node runs whose auth service hashes passwords so cheaply that stolen hashes can be guessed."""
    auth = node.service(Auth)
    if auth is not None and auth.settings.hashing.weak:
        node.environment.log.warning(
            "auth.hashing is so cheap that stolen hashes can be guessed quickly: remove it for the default cost"
        )


def _password(folder: Path) -> str:
    """Return the stored password of the example users, or generate and store one on the first start.

    A stored password means that commands pasted from an earlier start keep working.
    """
    path = folder / "password"
    try:
        if path.exists():
            return path.read_text(encoding="utf-8-sig").strip()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        password = secrets.token_urlsafe(9)
        path.touch(mode=0o600)
        path.write_text(password + "\n")
    except OSError as error:
        raise CallboardError(f"{path}: {error.strerror}: choose another folder with CALLBOARD_DATABASE__FOLDER") from error
    return password
