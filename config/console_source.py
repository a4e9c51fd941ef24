"""What the console shows beside the running system, and what opens it in development."""

from functools import partial

from config.console import console_token
from config.load import Loaded
from config.settings import EXAMPLE_USERS, Settings
from config.shown import shown
from config.users import has_our_auth
from gateway.console.access import ConsoleSource, Development


def console_source(loaded: Loaded, settings: Settings | None = None) -> ConsoleSource:
    """Return what the console shows beside the running system.

    Args:
        loaded: the settings, with where each was set.
        settings: those with which `dev` runs, which open the console without a login; None outside development.
    """
    if settings is None:
        return ConsoleSource(lambda: shown(loaded))
    users = EXAMPLE_USERS if has_our_auth(settings) else {}
    sign = partial(console_token, settings)
    return ConsoleSource(lambda: shown(loaded, settings), Development(sign, users, str(settings.dev.password or "")))
