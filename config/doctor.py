"""The doctor: looks, from where a service runs, at everything that it needs, and says what to do where something is wrong."""

import asyncio
import os
import shutil
import sqlite3
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from config import compose
from config.load import Loaded, variable
from config.settings import Settings
from runtime import CallboardError, Clock, StartError
from runtime.network import Address, Manifest, Receiver, TransportError
from runtime.service.service import Definition

_SECONDS = 5.0
_FILES = 1024
_ROOM = 100 * 1024 * 1024
_SOON = 14 * 24 * 3600
_AHEAD = 5.0
"""Seconds by which a clock may differ from another's: tokens and assertions are made for less than twice as much."""


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do."""

    what: str
    state: Literal["ok", "warning", "fault"]
    said: str


def _ok(what: str, said: str) -> Finding:
    return Finding(what, "ok", said)


def _fault(what: str, said: str) -> Finding:
    return Finding(what, "fault", said)


async def examine(loaded: Loaded, names: Sequence[str]) -> AsyncGenerator[Finding, None]:
    """Looks at everything, one thing after the other.

    Args:
        names: the services that run here; none for those whose credentials are here, or else all.
    """
    settings = loaded.settings
    names = list(names) or _own(settings)
    definitions = compose.definitions(settings, names)
    yield _settings(loaded, definitions)
    yield _limits()
    for definition in definitions:
        if definition.needs_database:
            yield _database(settings, definition.contract.name)
    needs = sorted({name for definition in definitions for name in definition.needs} - set(names))
    kind = settings.transport.kind
    if kind == "memory":
        yield _ok("transport", f"memory: what is needed runs in the same process ({variable('transport.kind')} chooses another)")
        return
    if "http" in kind:
        for finding in _keys(settings, names):
            yield finding
    if "mqtt" in kind:
        async for finding in _broker(settings, names, needs if kind == "mqtt" else []):
            yield finding
    if "http" in kind:
        async for finding in _peers(settings, needs):
            yield finding
    else:
        yield _clock_alone()


def _own(settings: Settings) -> list[str]:
    """The services whose credentials are here; all, where that cannot be told."""
    known = compose.catalogue(settings)
    if settings.transport.mqtt.username in known:
        return [str(settings.transport.mqtt.username)]
    return [name for name in _key_names(settings) if name in known] or list(known)


def _key_names(settings: Settings) -> tuple[str, ...]:
    if settings.transport.http.key is None:
        return ()
    from transports.http.assertions import Signer

    try:
        return Signer(settings.transport.http.key, Clock()).names
    except StartError:
        return ()


def _settings(loaded: Loaded, definitions: Sequence[Definition]) -> Finding:
    names = ", ".join(definition.contract.name for definition in definitions)
    places = sorted({"the environment" if source.startswith("CALLBOARD_") else source for source in loaded.sources.values()})
    return _ok("settings", f"{len(loaded.sources)} are set, in {' and '.join(places) or 'no place'}; looking for {names}")


def _limits() -> Finding:
    try:
        import resource
    except ImportError:
        return _ok("limits", "there are none")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = "any number of" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        return _fault(
            "limits", f"{said} open files: fewer than {_FILES:,}; raise it (docker: --ulimit nofile=4096, shell: ulimit -n)"
        )
    return _ok("limits", f"{said} open files")


def _database(settings: Settings, service: str) -> Finding:
    folder = Path(settings.database.folder)
    what, path = f"database of {service}", folder / f"{service}.sqlite"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return _fault(
            what,
            f"{folder} cannot be written to by user {os.getuid()}: {error.strerror}: mount a volume there that it owns, or choose another with {variable('database.folder')}",
        )
    free = shutil.disk_usage(folder).free
    if free < _ROOM:
        return _fault(what, f"{free // 1_000_000} MB are left on {folder}: make room")
    if not path.exists():
        return Finding(what, "warning", f"{path} is not there: it is made when {service} starts")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        return _fault(what, f"{path} is damaged ({said}): stop {service}, and restore a backup")
    return _ok(what, f"{path}, {path.stat().st_size / 1e6:.1f} MB, sound; {free / 1e9:.1f} GB are free")


# Over HTTP


def _keys(settings: Settings, names: Sequence[str]) -> list[Finding]:
    from transports.http.assertions import Refused, Signer, Verifier

    http, found = settings.transport.http, list[Finding]()
    clock = Clock()
    try:
        if http.key is None or http.peer_keys is None:
            raise StartError(f"set {variable('transport.http.key')}_FILE and {variable('transport.http.peer_keys')}_FILE")
        signer, verifier = Signer(http.key, clock), Verifier(http.peer_keys, clock)
        for name in names:
            verifier.caller(signer.assertion(name, "doctor"), "doctor")
    except (StartError, ValueError) as error:
        found.append(_fault("keys", f"{error}"))
    except Refused as error:
        found.append(_fault("keys", f"{error}: its public half is not among transport.http.peer_keys"))
    else:
        found.append(_ok("keys", f"{', '.join(names)} can prove to others who speaks"))
    if http.certificate_file is not None:
        found.append(_certificate(http.certificate_file, http.private_key_file or "", http.ca_file))
    return found


def _certificate(file: str, key: str, ca_file: str | None) -> Finding:
    from cryptography import x509

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key)
        certificate = x509.load_pem_x509_certificate(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        return _fault("certificate", f"{file} and {key} cannot be used together: {error}")
    left = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left < 0 or certificate.not_valid_before_utc > datetime.now(UTC):
        return _fault(
            "certificate",
            f"{file} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to {until}: make a new one, or set the clock",
        )
    try:
        refused = None if ca_file is None else _refused_by(ca_file, file, key)
    except OSError as error:
        return _fault("certificate", f"{ca_file}, by which others are verified, cannot be used: {error.strerror or error}")
    if refused is not None:
        return Finding("certificate", "warning", f"who trusts the authorities in {ca_file} alone refuses {file}: {refused}")
    return Finding("certificate", "warning" if left < _SOON else "ok", f"{file} is valid until {until}")


def _refused_by(ca_file: str, file: str, key: str) -> str | None:
    """Why a client that trusts `ca_file` refuses a certificate: what a handshake of the two, in memory, ends in."""
    trusting = ssl.create_default_context(cafile=ca_file)
    trusting.check_hostname = False
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(file, key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = shown.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except ssl.SSLWantReadError:
            continue
    return None


async def _peers(settings: Settings, needs: Sequence[str]) -> AsyncGenerator[Finding, None]:
    from transports.http.probe import probe

    apart: list[float] = []
    for service in needs:
        try:
            probed = await probe(settings.transport.http, service, Clock(), _SECONDS)
        except (StartError, ValueError) as error:
            yield _fault(f"peer {service}", str(error))
            continue
        there = [one for one in probed if one.node]
        apart += [one.seconds_ahead for one in there]
        if there:
            yield _ok(f"peer {service}", ", ".join(f"{one.node} at {one.place}" for one in there))
        elif probed:
            said = "; ".join(f"{one.place}: {one.error}" for one in probed)
            yield _fault(f"peer {service}", f"{said}: start it, or look at its log")
        else:
            yield _fault(
                f"peer {service}", f"nothing says where it is: add {service}=http://… to {variable('transport.http.peers')}"
            )
    worst = max(apart, key=abs, default=None)
    if worst is None:
        yield _clock_alone()
    elif abs(worst) > _AHEAD:
        yield _fault("clock", f"a peer's clock is {worst:+.0f} s from ours: synchronise them (NTP)")
    else:
        yield _ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; within {max(1, round(abs(worst)))} s of every peer's")


# Over MQTT


class Members(Receiver):
    """A receiver that only records the live instances."""

    def __init__(self) -> None:
        self.there: dict[str, list[str]] = {}

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self.there.setdefault(manifest.service, []).append(manifest.node)


async def _broker(settings: Settings, names: Sequence[str], needs: Sequence[str]) -> AsyncGenerator[Finding, None]:
    from transports.mqtt.topics import Topics
    from transports.mqtt.transport import MqttTransport

    chosen, members = settings.transport.mqtt, Members()
    transport, begun = MqttTransport(chosen), time.monotonic()
    name = f"doctor-{os.getpid()}-{time.time_ns() % 1_000_000_007}"
    try:
        async with asyncio.timeout(_SECONDS):
            await transport.open(name, members)
    except TimeoutError:
        yield _fault(
            "broker",
            f"{chosen.url} cannot be reached within {_SECONDS:g} s: start it, or correct {variable('transport.mqtt.url')}",
        )
        return
    except CallboardError as error:
        yield _fault("broker", str(error))
        return
    try:
        spent = (time.monotonic() - begun) * 1000
        yield _ok("broker", f"{chosen.url} lets {chosen.username or 'nobody in particular'} in ({spent:.0f} ms)")
        topics = Topics(chosen.namespace)
        other = next(known for known in compose.catalogue(settings) if known not in names) if len(names) == 1 else "nobody"
        try:
            async with asyncio.timeout(_SECONDS):
                await transport.link.publish_acknowledged(topics.presence(Address(other, name)), b"")
        except TransportError:
            yield _ok("access list", f"the broker does not let {chosen.username or 'us'} speak for {other}")
        except TimeoutError:
            yield _fault("access list", "the broker does not answer a message")
        else:
            yield _fault(
                "access list",
                f"the broker lets {chosen.username or 'everybody'} speak for {other}: set acl_file, and a user for each service",
            )
        for service in needs:
            async with asyncio.timeout(_SECONDS):
                await transport.watch(service)
            nodes = members.there.get(service)
            if nodes:
                yield _ok(f"peer {service}", ", ".join(nodes))
            else:
                yield _fault(f"peer {service}", "nobody has announced it: start it, and look at its log")
    except (TimeoutError, TransportError) as error:
        yield _fault("broker", f"the connection was lost: {error or 'no answer'}")
    finally:
        await transport.close()


def _clock_alone() -> Finding:
    return _ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; compared with nobody's")
