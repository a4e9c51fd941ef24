"""Brokers that refuse a node: wrong passwords, untrusted certificates, and unusable addresses."""

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config import compose
from config.load import load
from runtime import CallboardError, Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.system.process import Callboard
from tests.transports.mqtt.echo import Echo, Much, answers, echo_over_mqtt, transport
from transports.mqtt.access import password_file
from transports.mqtt.broker import BrokerRefused
from transports.mqtt.settings import MqttSettings


def with_users(folder: Path) -> tuple[str, ...]:
    """Return the settings of a broker with one user, `echo`, whose password is `right`."""
    (folder / "users").write_text(password_file({"echo": "right"}))
    return "allow_anonymous false", f"password_file {folder}/users"


async def test_a_wrong_password_ends_the_start_without_a_retry(tmp_path: Path) -> None:
    async with Broker(tmp_path, *with_users(tmp_path)) as broker:
        for settings in ({}, {"username": "echo", "password": "wrong"}):
            with pytest.raises(BrokerRefused, match="the user name or the password is wrong"):
                async with Node([Echo], transport(broker.url, **settings)):
                    pass
        async with Node([Echo], transport(broker.url, username="echo", password="right")):
            pass
        assert "right" not in repr(MqttSettings(password="right"))


async def test_a_password_that_is_rotated_in_its_file_is_used_for_the_next_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "password"
    secret.write_text("right\n")
    monkeypatch.setenv("CALLBOARD_TRANSPORT__MQTT__PASSWORD_FILE", str(secret))
    async with Broker(tmp_path, *with_users(tmp_path)) as broker:
        variables = {"KIND": "mqtt", "MQTT__URL": broker.url, "MQTT__USERNAME": "echo", "MQTT__PASSWORD_FILE": str(secret)}
        settings = load(None, {f"CALLBOARD_TRANSPORT__{name}": value for name, value in variables.items()}).settings
        chosen = compose.transport(settings)
        async with Node([Echo], chosen):
            await broker.stop()
            (tmp_path / "users").write_text(password_file({"echo": "rotated"}))
            await broker.start()
            await eventually(lambda: "the user name or the password is wrong" in caplog.text, "the broker refuses the old one")
            assert not chosen.connected
            new = tmp_path / "new"
            new.write_text("rotated\n")
            new.replace(secret)
            await eventually(lambda: chosen.connected, "the new password is used")
    assert "rotated" not in caplog.text


async def test_run_with_a_wrong_password_exits_with_one_line(tmp_path: Path) -> None:
    async with Broker(tmp_path, *with_users(tmp_path)) as broker:
        async with Callboard(
            tmp_path, "run", "wallet", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=broker.url,
            CALLBOARD_TRANSPORT__MQTT__USERNAME="echo", CALLBOARD_TRANSPORT__MQTT__PASSWORD="wrong-secret",
        ) as run:  # fmt: skip
            assert await run.ends() == 2
        assert len(run.output.splitlines()) == 1
        assert "the user name or the password is wrong" in run.output
        assert "wrong-secret" not in run.output


class Authority:
    """A small certificate authority."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(_pem(self._sign(self._name, self._key.public_key(), 1, authority=True)))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, days: int, *, authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(
                _usage(authority=authority), critical=True
            )  # Python 3.13 trusts no certificate without this and the next two extensions
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return certificate.sign(self._key, hashes.SHA256())

    def broker(self, days: int = 1) -> tuple[str, ...]:
        """Return the settings of a broker whose certificate this authority signed, valid for that many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
        (self._folder / "broker.pem").write_bytes(_pem(self._sign(name, key.public_key(), days, authority=False)))
        plain = serialization.NoEncryption()
        (self._folder / "broker.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        return "allow_anonymous true", f"certfile {self._folder}/broker.pem", f"keyfile {self._folder}/broker.key"


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def secure(broker: Broker) -> str:
    """Return the broker's URL with the TLS scheme."""
    return broker.url.replace("mqtt://", "mqtts://")


async def test_requests_work_over_tls(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    async with Broker(tmp_path, *ours.broker()) as broker, echo_over_mqtt(secure(broker), ca_file=str(ours.file)) as (_, ctx):
        assert await answers(ctx)
        assert len(await ctx.request(Much(1_000_000))) == 1_000_000


@pytest.mark.parametrize(
    ("days", "trusted", "reason"),
    [(1, "theirs", "unable to get local issuer certificate"), (-1, "ours", "certificate has expired")],
)
async def test_an_untrusted_certificate_ends_the_start_with_its_reason(
    tmp_path: Path, days: int, trusted: str, reason: str
) -> None:
    authorities = {name: Authority(tmp_path, name) for name in ("ours", "theirs")}
    async with Broker(tmp_path, *authorities["ours"].broker(days)) as broker:
        with pytest.raises(BrokerRefused, match=f"not to be trusted: {reason}"):
            async with Node([Echo], transport(secure(broker), ca_file=str(authorities[trusted].file))):
                pass
        async with Callboard(
            tmp_path, "run", "wallet", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=secure(broker),
            CALLBOARD_TRANSPORT__MQTT__CA_FILE=str(authorities[trusted].file),
        ) as run:  # fmt: skip
            assert await run.ends() == 2
        assert len(run.output.splitlines()) == 1
        assert reason in run.output


async def test_plain_text_to_a_tls_port_is_logged_while_the_node_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = Authority(tmp_path, "ours")
    async with Broker(tmp_path, *ours.broker()) as broker:
        starting = asyncio.create_task(Node([Echo], transport(broker.url)).__aenter__())
        await eventually(lambda: "expects TLS here" in caplog.text, "the node logs what the reason may be")
        starting.cancel()
        await asyncio.wait((starting,))


@pytest.mark.parametrize("url", ["mqtt://127.0.0.1:99999", f"mqtt://{'a' * 70}.example:1883"])
async def test_an_invalid_broker_address_ends_the_start(url: str) -> None:
    with pytest.raises(CallboardError):
        async with asyncio.timeout(10):
            async with Node([Echo], transport(url)):
                pass
