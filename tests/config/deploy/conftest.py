"""The project that is deployed, in each way."""

from pathlib import Path

import pytest

from tests.project import RENTAL_SERVICES

POSTGRES = {"CALLBOARD_DATABASE__URL": "postgresql://owner:sesame@db.example:5433/rental"}
WAYS: dict[str, dict[str, str]] = {
    "files": {},
    "postgres": POSTGRES,
    "http": {"CALLBOARD_TRANSPORT__KIND": "http", **POSTGRES},
    "http+mqtt": {"CALLBOARD_TRANSPORT__KIND": "http+mqtt"},
    "own broker": {"CALLBOARD_TRANSPORT__KIND": "mqtt", "CALLBOARD_TRANSPORT__MQTT__URL": "mqtts://broker.example:9883"},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The settings of a project, in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    monkeypatch.setenv("CALLBOARD_SERVICES__WALLET__SETTINGS__HOLD_SECONDS", "77")
    for name, value in WAYS[request.param].items():
        monkeypatch.setenv(name, value)
    chosen: str = request.param
    return chosen
