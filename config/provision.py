"""Credentials for a system of containers: a small certificate authority, a certificate, a key and a password for each service.

`make containers` runs this. If all of it is there it stays as it is, so that it can be run again; if a file is missing, all
are made anew, for the authority's private key is not kept. What runs has to be started anew then.
"""

import base64
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import rich_click as click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from config import compose
from config.broker import DEVICES
from config.load import load
from config.settings import Settings
from runtime import CallboardError
from transports.mqtt.access import access_list, password_file

_LIFETIME = timedelta(days=825)
"""The longest that all TLS libraries take for a certificate of one's own authority."""
_EARLY = timedelta(minutes=5)
_BROKER = "mosquitto"
_USERS = (("rider@example.com", "rider"), ("operator@example.com", "operator"), ("admin@example.com", "admin"))


def provision(folder: Path, settings: Settings) -> bool:
    """Makes what is missing. Says whether anything was.

    Each service finds its own in `<folder>/<service>`, what all may know is in `shared`, the broker's in `mosquitto`.
    Files are readable by every user, for in a container it is another one who reads them; the folder around them is
    open to its owner alone.

    Raises:
        CallboardError: the folder is somebody else's.
    """
    definitions = compose.definitions(settings)
    names = [definition.contract.name for definition in definitions]
    complete = all((folder / path).is_file() for path in _files(names))
    if not complete:
        _clear(folder)
        _certificates(folder, [*names, _BROKER])
        private, public = peer_keys(names)
        for name, key in private.items():
            _write(folder / name / "peer-key.json", key)
        _write(folder / "shared" / "peer-keys.json", public)
        _passwords(folder, names)
        _users(folder)
    _write(folder / _BROKER / "access", access_list(definitions, settings.transport.mqtt.namespace, devices=DEVICES))
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
            if any(folder.iterdir()) and not (folder / "shared" / "peer-keys.json").exists():
                raise CallboardError(f"{folder} has other files in it: name another folder, or an empty one")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise CallboardError(f"{error.filename}: {error.strerror}: remove {folder}, and run this again") from error


def _write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o755)  # whatever the umask; the folder around it is closed
    path.unlink(missing_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o444)


def _certificates(folder: Path, names: Sequence[str]) -> None:
    """An authority, and for each name a certificate of it. The authority's key is forgotten."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Callboard containers")])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip

    def begun(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLY)
            .not_valid_after(now + _LIFETIME)
        )

    authority = (
        begun(ca, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "shared" / "ca.pem", authority.public_bytes(serialization.Encoding.PEM))
    for name in names:
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), own.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(folder / name / "certificate.pem", certificate.public_bytes(serialization.Encoding.PEM))
        pem = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(folder / name / "private-key.pem", pem)


def peer_keys(names: Sequence[str]) -> tuple[dict[str, str], str]:
    """What services prove to each other by who they are, over HTTP: each one's private key, and the public halves of all."""
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
    """By these services prove to the broker who they are."""
    passwords = {name: secrets.token_urlsafe(24) for name in names}
    for name, password in passwords.items():
        _write(folder / name / "mqtt-password", password)
    _write(folder / _BROKER / "passwords", password_file(passwords))


def _users(folder: Path) -> None:
    """Those who can log in at first; they share a password, which stands beside them."""
    password = secrets.token_urlsafe(12)
    users = [{"email": email, "role": role, "password": password} for email, role in _USERS]
    _write(folder / "auth" / "users.json", msgspec.json.encode(users))
    path = folder / "password"
    path.touch(mode=0o600)
    path.write_text(password + "\n", encoding="utf-8")


def main() -> None:
    """Provisions the folder that the command line names."""
    folder = Path(sys.argv[1])
    try:
        made = provision(folder, load(environment=os.environ).settings)
    except CallboardError as error:
        sys.exit(f"callboard: {error}")
    said = "certificates, keys and passwords were made; containers that run have to be recreated" if made else "all is there"
    click.echo(f"{folder}: {said}")
    click.echo(f"log in as {', '.join(email for email, _ in _USERS)} with the password in {folder / 'password'}")


if __name__ == "__main__":
    main()
