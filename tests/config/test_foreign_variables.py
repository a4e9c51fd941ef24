"""Variables that Kubernetes and docker make are passed over; misspelled settings are not."""

from pathlib import Path

import pytest

from config.load import load
from config.values import SettingsError

_OF_KUBERNETES = {
    "CALLBOARD_GATEWAY_SERVICE_HOST": "10.96.0.10",
    "CALLBOARD_GATEWAY_SERVICE_PORT": "8000",
    "CALLBOARD_GATEWAY_SERVICE_PORT_HTTP": "8000",
    "CALLBOARD_GATEWAY_SERVICE_PORT_HTTP_ALT": "8001",
    "CALLBOARD_GATEWAY_SERVICE_PORT_FILE": "8002",  # a port named `file`
    "CALLBOARD_GATEWAY_PORT": "tcp://10.96.0.10:8000",
    "CALLBOARD_GATEWAY_PORT_8000_TCP": "tcp://10.96.0.10:8000",
    "CALLBOARD_GATEWAY_PORT_8000_TCP_PROTO": "tcp",
    "CALLBOARD_GATEWAY_PORT_8000_TCP_PORT": "8000",
    "CALLBOARD_GATEWAY_PORT_8000_TCP_ADDR": "10.96.0.10",
    "CALLBOARD_DNS_PORT_53_UDP": "udp://[fd00::a]:53",
    "CALLBOARD_DNS_PORT_53_UDP_PROTO": "udp",
    "CALLBOARD_DNS_PORT_53_UDP_PORT": "53",
    "CALLBOARD_DNS_PORT_53_UDP_ADDR": "fd00::a",
    "CALLBOARD_SIG_PORT_9_SCTP": "sctp://10.96.0.11:9",
    "CALLBOARD_SIG_PORT_9_SCTP_PROTO": "sctp",
    "CALLBOARD_SERVICE_HOST": "10.96.0.12",  # a Service named `callboard`
    "CALLBOARD_SERVICE_PORT": "80",
    "CALLBOARD_PORT": "tcp://10.96.0.12:80",
    "CALLBOARD_PORT_80_TCP_ADDR": "10.96.0.12",
    "CALLBOARD_SERVICES_SERVICE_HOST": "10.96.0.13",
    "CALLBOARD_GATEWAY__EU_SERVICE_HOST": "10.96.0.14",  # a Service named `callboard-gateway--eu`
}
_OF_DOCKER = {
    "CALLBOARD_DB_NAME": "/web/callboard-db",
    "CALLBOARD_DB_ENV_PATH": "/usr/bin:/bin",
    "CALLBOARD_DB_ENV_CALLBOARD_GATEWAY__HOST": "0.0.0.0",
    "CALLBOARD_DB_ENV_EMPTY": "",
    "CALLBOARD_DB_PORT": "tcp://172.17.0.5:5432",
    "CALLBOARD_DB_PORT_5432_TCP": "tcp://172.17.0.5:5432",
    "CALLBOARD_DB_PORT_5432_TCP_START": "tcp://172.17.0.5:5432",
    "CALLBOARD_DB_PORT_5432_TCP_PORT_END": "5433",
    "CALLBOARD_DB_1_PORT_5432_TCP_ADDR": "172.17.0.5",
}


@pytest.fixture(autouse=True)
def without_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_variables_of_kubernetes_and_docker_are_passed_over() -> None:
    loaded = load(None, _OF_KUBERNETES | _OF_DOCKER | {"CALLBOARD_GATEWAY__PORT": "81"})
    assert loaded.settings.gateway.port == 81
    assert loaded.sources == {"gateway.port": "CALLBOARD_GATEWAY__PORT"}


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("CALLBOARD_GATEWAY_PORT", "8000", "CALLBOARD_GATEWAY__PORT"),
        ("CALLBOARD_HEALTH_PORT", "9000", "CALLBOARD_HEALTH__PORT"),
        ("CALLBOARD_GATEWAY_SERVICE_HOST", "my gateway", "enableServiceLinks: false"),
        ("CALLBOARD_GATEWAY_PORT_8000_TCP", "8000", "enableServiceLinks: false"),
        ("CALLBOARD_GATEWAY__PROT", "8000", "CALLBOARD_GATEWAY__PORT"),
        ("CALLBOARD_GATEWAY__SERVICE_PORT", "8000", "CALLBOARD_GATEWAY__"),
        ("CALLBOARD_GATEWAY_HOST", "127.0.0.1", "CALLBOARD_GATEWAY__HOST"),
        ("CALLBOARD_AUTH__ENV_PATH", "/usr/bin", "unknown setting"),
        ("CALLBOARD_TRANSPORT_MQTT_USERNAME", "/me", "CALLBOARD_TRANSPORT__MQTT__USERNAME"),
    ],
)
def test_a_misspelled_setting_is_refused(name: str, value: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {name: value})
    assert str(caught.value).startswith(f"{name}: unknown setting")
    assert hint in str(caught.value)
