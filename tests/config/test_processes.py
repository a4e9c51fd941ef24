"""The environment that child processes receive."""

import pytest

from config.processes import program_environment, service_environment

SECRETS = {
    "CALLBOARD_DEV__PASSWORD": "s1",
    "CALLBOARD_DEV__PASSWORD_FILE": "s2",
    "CALLBOARD_AUTH__USERS": "s3",
    "CALLBOARD_AUTH__USERS_FILE": "s4",
    "CALLBOARD_TRANSPORT__MQTT__PASSWORD": "s5",
    "CALLBOARD_TRANSPORT__HTTP__KEY": "s6",
    "CALLBOARD_TOKEN": "s7",
}
OTHERS = {
    "CALLBOARD_LOG__LEVEL": "debug",
    "CALLBOARD_AUTH__ACCESS_SECONDS": "60",
    "PAYMENTS_URL": "u",
    "PATH": "/bin",
    "LC_ALL": "C",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, **OTHERS}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("service", ["wallet", "gateway", "auth"])
def test_a_service_receives_only_its_own_secrets(service: str) -> None:
    inherited = service_environment(service)
    assert OTHERS.items() <= inherited.items()
    own = {name for name in SECRETS if name.startswith(f"CALLBOARD_{service.upper()}__")}
    assert SECRETS.keys() & inherited.keys() == own


def test_a_program_that_is_not_ours_receives_no_settings_at_all() -> None:
    inherited = program_environment()
    assert not [name for name in inherited if name.startswith("CALLBOARD") or name == "PAYMENTS_URL"]
    assert inherited["PATH"] == "/bin"
