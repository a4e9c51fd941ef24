"""Settings: precedence of their sources, and what is refused."""

from pathlib import Path

import pytest

from config.load import load
from config.values import SettingsError


def test_the_environment_overrides_the_file_and_the_file_overrides_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "callboard.toml"
    file.write_text('[gateway]\nport = 1\nmax_body = 2\n[node.tokens]\nissuer = "me"\n')
    loaded = load(file, {"CALLBOARD_GATEWAY__PORT": "3", "PATH": "x", "CALLBOARD_GATEWAY__CORS_ORIGINS": "https://a, https://b"})
    gateway = loaded.settings.gateway
    assert (gateway.port, gateway.max_body, gateway.host, gateway.cors_origins) == (3, 2, "127.0.0.1", ("https://a", "https://b"))
    assert loaded.settings.node.tokens.issuer == "me"
    assert loaded.sources == {
        "gateway.port": "CALLBOARD_GATEWAY__PORT", "gateway.max_body": str(file),
        "gateway.cors_origins": "CALLBOARD_GATEWAY__CORS_ORIGINS", "node.tokens.issuer": str(file),
    }  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("true", True), ("0", False), ("False", False)])
def test_booleans_are_read_from_the_environment(text: str, value: bool) -> None:
    assert load(None, {"CALLBOARD_DATABASE__DURABLE": text}).settings.database.durable is value


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[gateway]\nprot = 1", "gateway.prot: unknown setting: did you mean gateway.port"),
        ("[nowhere]\nx = 1", "nowhere.x: unknown setting"),
        ('[gateway]\nport = "8000"', "gateway.port: expected `int`, got `str`"),
        ("gateway = 5", "gateway: gateway is a section: set one of gateway.host"),
        ("[gateway", "is not TOML"),
        ("[gateway]\nport = true", "gateway.port: expected `int`, got `bool`"),
        ("[node]\nrequest_timeout = -1", "node.request_timeout: expected `float` > 0.0"),
    ],
)
def test_an_invalid_file_is_refused_with_the_setting_and_the_path(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match=r"CALLBOARD_DEV__PASSWORD_FILE=.*cannot be read"):
        load(None, {"CALLBOARD_DEV__PASSWORD_FILE": str(tmp_path / "none")})


def test_a_byte_order_mark_is_not_part_of_a_file(tmp_path: Path) -> None:
    file, secret = tmp_path / "callboard.toml", tmp_path / "password"
    file.write_text("[gateway]\nport = 1\n", encoding="utf-8-sig")
    secret.write_text("pä55\n", encoding="utf-8-sig")
    settings = load(file, {"CALLBOARD_TRANSPORT__MQTT__PASSWORD_FILE": str(secret)}).settings
    assert (settings.gateway.port, settings.transport.mqtt.password) == (1, "pä55")


def test_a_key_in_quotes_reaches_no_setting(tmp_path: Path) -> None:
    (tmp_path / "callboard.toml").write_text('"gateway.port" = 9\n', encoding="utf-8")
    with pytest.raises(SettingsError, match=r"'gateway\.port': a key in quotes cannot contain dots"):
        load(tmp_path / "callboard.toml", {})
