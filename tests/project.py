"""The scooter rental, the project of this repository, for tests that run elsewhere."""

from typing import Any

import msgspec

from config import compose
from config.load import load
from config.packages import ROOT
from config.settings import Settings

RENTAL: Settings = load(ROOT / "callboard.toml").settings
"""Its settings, all of them as they are by default."""
RENTAL_SERVICES: str = ",".join(entry.class_ for entry in RENTAL.services.values())
"""The variable `CALLBOARD_SERVICES` with its services, for commands in a folder without a project."""


def rental(own: dict[str, Any] | None = None, **sections: Any) -> Settings:
    """Return its settings with other sections, and other settings of its services."""
    settings = msgspec.structs.replace(RENTAL, **sections)
    for name, value in (own or {}).items():
        settings = compose.with_own_settings(settings, name, value)
    return settings
