"""Create the credentials of a containerised system: a certificate authority, and a certificate, key, and password per service.

`callboard provision` does this. It can be run repeatedly: if all files exist, they are kept. If any file is missing, all
are created again, because the private key of the authority is not stored. Running containers must be recreated then.
"""

import base64
import secrets
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from config import compose
from config.broker import DEVICES
from config.settings import EXAMPLE_USERS, Settings
from config.users import has_our_auth
from runtime import CallboardError
from transports.mqtt.access import access_list, device_access_list, password_file

_LIFETIME = timedelta(days=825)
"""The longest lifetime that all TLS libraries accept for a certificate from a private authority."""
_CLOCK_SKEW = timedelta(minutes=5)
"""How far the start of validity lies in the past, for machines whose clock is behind."""
_BROKER = "mosquitto"


def provision(folder: Path, settings: Settings) -> bool:
    """Create the credentials in a folder if any are missing. Return True if they were created.

    The broker's access lists are written every time. The password file of the devices begins empty, and is kept.

    The files of a service are in `<folder>/<service>`, public files for all services in `shared`, and the broker's files in
    `mosquitto`. All users may read the files, because a different user reads them inside a container. Only the owner may
    open the folder itself.

    Raises:
        CallboardError: if the folder contains other files or cannot be written.
    """
    definitions = compose.definitions(settings)
    names = [definition.contract.name for definition in definitions]
    complete = all((folder / path).is_file() for path in _files(names))
    device_passwords = folder / _BROKER / "device-passwords"
    devices = device_passwords.read_bytes() if device_passwords.exists() else b""
    if not complete:
        _clear(folder)
        _certificates(folder, [*names, _BROKER])
        private, public = peer_keys(names)
        for name, key in private.items():
            _write(folder / name / "peer-key.json", key)
        _write(folder / "shared" / "peer-keys.json", public)
        _passwords(folder, names)
        if has_our_auth(settings):
            _users(folder)
    namespace = settings.transport.mqtt.namespace
    _write(folder / _BROKER / "access", access_list(definitions, namespace))
    _write(folder / _BROKER / "device-access", device_access_list(DEVICES, namespace))
    if not device_passwords.exists():
        _write(device_passwords, devices)
    folder.chmod(0o700)
    return not complete


def _files(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from (f"{name}/{file}" for file in ("certificate.pem", "private-key.pem", "peer-key.json", "mqtt-password"))
    yield from (f"{_BROKER}/{file}" for file in ("certificate.pem", "private-key.pem", "passwords"))
    yield from ("shared/ca.pem", "shared/peer-keys.json", "auth/users.json", "password")


def _clear(folder: Path) -> None:
    try:
        if folder.exists():
            found = [path for path in folder.iterdir() if not path.name.startswith(".")]
            if found and not (folder / "shared" / "peer-keys.json").exists():
                raise CallboardError(f"{folder} has other files in it: choose another folder, or empty this one")
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise CallboardError(f"{error.filename}: {error.strerror}: remove {folder}, and run this again") from error


def _write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o755)  # regardless of the umask; the folder above is accessible to its owner only
    path.unlink(missing_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o444)


def _certificates(folder: Path, names: Sequence[str]) -> None:
    """Create an authority and a certificate for each name. The private key of the authority is not stored."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Callboard containers")])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _LIFETIME)
        )

    authority = (
        builder(ca, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "shared" / "ca.pem", authority.public_bytes(serialization.Encoding.PEM))
    for name in names:
        service_key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), service_key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(folder / name / "certificate.pem", certificate.public_bytes(serialization.Encoding.PEM))
        pem = service_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(folder / name / "private-key.pem", pem)


def peer_keys(names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Create the Ed25519 keys with which services authenticate to each other over HTTP.

    Returns:
        The private key of each service by its name, and the public keys of all services. Both are JSON Web Key sets.
    """
    private: dict[str, str] = {}
    public: list[dict[str, str]] = []
    for name in names:
        key = Ed25519PrivateKey.generate()
        jwk = {"kty": "OKP", "crv": "Ed25519", "kid": name, "x": _base64(key.public_key().public_bytes_raw())}
        public.append(jwk)
        private[name] = msgspec.json.encode({"keys": [{**jwk, "d": _base64(key.private_bytes_raw())}]}).decode()
    return private, msgspec.json.encode({"keys": public}).decode()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _passwords(folder: Path, names: Sequence[str]) -> None:
    """Create the passwords with which services authenticate to the broker."""
    passwords = {name: secrets.token_urlsafe(24) for name in names}
    for name, password in passwords.items():
        _write(folder / name / "mqtt-password", password)
    _write(folder / _BROKER / "passwords", password_file(passwords))


def _users(folder: Path) -> None:
    """Create the initial users. They share one password, which is stored in the file `password`."""
    password = secrets.token_urlsafe(12)
    users = [{"email": email, "role": role, "password": password} for email, role in EXAMPLE_USERS.items()]
    _write(folder / "auth" / "users.json", msgspec.json.encode(users))
    path = folder / "password"
    path.touch(mode=0o600)
    path.write_text(password + "\n", encoding="utf-8")
