"""Check everything that services need from the machine they run on, and advise how to fix what is wrong."""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from config import compose
from config.database_checks import TIMEOUT, check_file, check_server, check_streams
from config.finding import Finding, fault, ok
from config.load import Loaded
from config.settings import Settings
from config.values import SettingsError, variable_name
from runtime import CallboardError, Clock, StartError
from runtime.network import Address, Manifest, Receiver, TransportError
from runtime.service.service import Definition

if TYPE_CHECKING:
    from transports.mqtt.transport import MqttTransport

_MIN_FILES = 1024
"""The smallest acceptable limit of open files."""
_EXPIRES_SOON = 14 * 24 * 3600
"""Seconds before a certificate expires from which on the doctor warns."""
_MAX_CLOCK_SKEW = 5.0
"""Seconds by which two clocks may differ. Tokens and assertions tolerate less than twice as much."""


async def examine(loaded: Loaded, names: Sequence[str]) -> AsyncGenerator[Finding, None]:
    """Run all checks in sequence and yield the result of each.

    Args:
        loaded: the settings and where they were set.
        names: the services to check. If empty, the services whose credentials are configured here, or else all services.
    """
    settings = loaded.settings
    names = list(names) or _services_with_credentials(settings)
    definitions = compose.definitions(settings, names)
    yield _settings(loaded, definitions)
    for definition in definitions:
        try:
            compose.factory(settings, definition.contract.name)
        except SettingsError as error:
            yield fault(f"settings of {definition.contract.name}", str(error))
    yield _limits()
    for definition in definitions:
        name = definition.contract.name
        if definition.needs_database:
            has_file = compose.database_url(settings, name) is None
            found = check_file(settings, name) if has_file else await check_server(settings, name)
            yield found
            if found.state == "ok":
                yield await check_streams(settings, name)
    needs = sorted({name for definition in definitions for name in definition.needs} - set(names))
    kind = settings.transport.kind
    if kind == "memory":
        yield ok(
            "transport",
            f"memory: all services run in the same process ({variable_name('transport.kind')} selects another transport)",
        )
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
        yield _clock_without_peers()


def _services_with_credentials(settings: Settings) -> list[str]:
    """Return the services whose credentials are configured here, or all services if there are none."""
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
    sources = sorted({"the environment" if source.startswith("CALLBOARD_") else source for source in loaded.sources.values()})
    origin = f" in {' and '.join(sources)}" if sources else ""
    return ok("settings", f"{len(loaded.sources)} set{origin}; checking {names}")


def _limits() -> Finding:
    try:
        import resource
    except ImportError:
        return ok("limits", "the platform has none")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "any number of" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if hard != resource.RLIM_INFINITY and hard < _MIN_FILES:
        return fault(
            "limits",
            f"{limit} open files: fewer than {_MIN_FILES:,}; raise the limit (docker: --ulimit nofile=4096, shell: ulimit -n)",
        )
    return ok("limits", f"{limit} open files")


# Checks of the HTTP transport


def _keys(settings: Settings, names: Sequence[str]) -> list[Finding]:
    from transports.http.assertions import Refused, Signer, Verifier

    http, found = settings.transport.http, list[Finding]()
    clock = Clock()
    try:
        if http.key is None or http.peer_keys is None:
            raise StartError(
                f"set {variable_name('transport.http.key')}_FILE and {variable_name('transport.http.peer_keys')}_FILE"
            )
        signer, verifier = Signer(http.key, clock), Verifier(http.peer_keys, clock)
        for name in names:
            verifier.caller(signer.assertion(name, "doctor"), "doctor")
    except (StartError, ValueError) as error:
        found.append(fault("keys", f"{error}"))
    except Refused as error:
        found.append(fault("keys", f"{error}: its public key is not in transport.http.peer_keys"))
    else:
        found.append(ok("keys", f"{', '.join(names)} can authenticate to other services"))
    if http.certificate_file is not None:
        found.append(_certificate(http.certificate_file, http.private_key_file or "", http.ca_file))
    return found


def _certificate(file: str, key: str, ca_file: str | None) -> Finding:
    from cryptography import x509

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key)
        certificate = x509.load_pem_x509_certificate(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        return fault("certificate", f"{file} and {key} cannot be used together: {error}")
    left = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left < 0 or certificate.not_valid_before_utc > datetime.now(UTC):
        return fault(
            "certificate",
            f"{file} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to {until}: create a new one, or correct the clock",
        )
    try:
        refused = None if ca_file is None else _refusal_by(ca_file, file, key)
    except OSError as error:
        return fault("certificate", f"{ca_file}, which verifies other services, cannot be used: {error.strerror or error}")
    if refused is not None:
        return Finding(
            "certificate", "warning", f"a client that trusts only the authorities in {ca_file} refuses {file}: {refused}"
        )
    return Finding("certificate", "warning" if left < _EXPIRES_SOON else "ok", f"{file} is valid until {until}")


def _refusal_by(ca_file: str, file: str, key: str) -> str | None:
    """Return why a client that trusts only `ca_file` refuses a certificate, or None if it accepts it.

    The answer comes from a TLS handshake between a client and a server in memory.
    """
    client_context = ssl.create_default_context(cafile=ca_file)
    client_context.check_hostname = False
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(file, key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
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

    skews: list[float] = []
    for service in needs:
        try:
            probed = await probe(settings.transport.http, service, Clock(), TIMEOUT)
        except (StartError, ValueError) as error:
            yield fault(f"peer {service}", str(error))
            continue
        found = [one for one in probed if one.node]
        skews += [one.seconds_ahead for one in found]
        if found:
            yield ok(f"peer {service}", ", ".join(f"{one.node} at {one.location}" for one in found))
        elif probed:
            errors = "; ".join(f"{one.location}: {one.error}" for one in probed)
            yield fault(f"peer {service}", f"{errors}: start it, or read its log")
        else:
            yield fault(
                f"peer {service}", f"its address is unknown: add {service}=http://… to {variable_name('transport.http.peers')}"
            )
    worst = max(skews, key=abs, default=None)
    if worst is None:
        yield _clock_without_peers()
    elif abs(worst) > _MAX_CLOCK_SKEW:
        yield fault("clock", f"a peer's clock differs from ours by {worst:+.0f} s: synchronise them (NTP)")
    else:
        yield ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; within {max(1, round(abs(worst)))} s of every peer's")


# Checks of the MQTT transport


class Members(Receiver):
    """A receiver that records which nodes announce each service."""

    def __init__(self) -> None:
        self.nodes: dict[str, list[str]] = {}

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self.nodes.setdefault(manifest.service, []).append(manifest.node)


async def _broker(settings: Settings, names: Sequence[str], needs: Sequence[str]) -> AsyncGenerator[Finding, None]:
    """Check every broker of the cluster, and on the first one that can be used, which services have announced themselves."""
    for url in settings.transport.mqtt.brokers:
        usable = False
        async for finding in _one_broker(settings, url, names, needs):
            yield finding
            usable = usable or finding.state == "ok"
        if usable:
            needs = ()


async def _one_broker(settings: Settings, url: str, names: Sequence[str], needs: Sequence[str]) -> AsyncGenerator[Finding, None]:
    from transports.mqtt.transport import MqttTransport

    own, members = settings.transport.mqtt, Members()
    chosen = msgspec.structs.replace(own, urls=(url,), connect_timeout=min(own.connect_timeout, 0.8 * TIMEOUT))
    transport, started = MqttTransport(chosen), time.monotonic()
    name = f"doctor-{os.getpid()}-{time.time_ns() % 1_000_000_007}"
    try:
        async with asyncio.timeout(TIMEOUT):
            await transport.open(name, members)
    except TimeoutError:
        variable = variable_name("transport.mqtt.urls" if settings.transport.mqtt.urls else "transport.mqtt.url")
        said = transport.attempts.last_error or f"{url} cannot be reached: no answer within {TIMEOUT:g} s"
        yield fault("broker", f"{said}: start it, or correct {variable}")
        return
    except CallboardError as error:
        yield fault("broker", str(error))
        return
    try:
        milliseconds = (time.monotonic() - started) * 1000
        user = chosen.username or "an anonymous user"
        yield ok("broker", f"{url} accepts {user} ({milliseconds:.0f} ms)")
        for restriction in transport.link.limits.restrictions():
            yield Finding("broker", "warning", f"{url}: {restriction}")
        other = next(known for known in compose.catalogue(settings) if known not in names) if len(names) == 1 else "nobody"
        yield await _access_list(transport, chosen.namespace, Address(other, name), user)
        retained = transport.link.limits.retain and len(settings.transport.mqtt.brokers) == 1
        patience = 0 if retained else transport.settling
        async with asyncio.timeout(TIMEOUT + patience):
            for service in needs:
                await transport.watch(service)
            complete_at = time.monotonic() + patience
            while not members.nodes.keys() >= set(needs) and time.monotonic() < complete_at:
                await asyncio.sleep(0.05)
        for service in needs:
            nodes = members.nodes.get(service)
            if nodes:
                yield ok(f"peer {service}", ", ".join(nodes))
            else:
                yield fault(f"peer {service}", "no node has announced it: start it, or read its log")
    except (TimeoutError, TransportError) as error:
        yield fault("broker", f"the connection was lost: {error or 'no answer'}")
    finally:
        await transport.close()


async def _access_list(transport: "MqttTransport", namespace: str, forged: Address, user: str) -> Finding:
    """Check whether the broker lets a user publish as another service."""
    from transports.mqtt.topics import Topics

    if not transport.link.limits.acknowledges:
        return Finding("access list", "warning", "cannot be checked, because the broker takes QoS 0 only")
    try:
        async with asyncio.timeout(TIMEOUT):
            await transport.link.publish_acknowledged(Topics(namespace).presence(forged), b"")
    except TransportError:
        return ok("access list", f"the broker does not let {user} publish as {forged.service}")
    except TimeoutError:
        return fault("access list", "the broker does not acknowledge messages")
    return fault(
        "access list", f"the broker lets {user} publish as {forged.service}: set acl_file, and create a user for each service"
    )


def _clock_without_peers() -> Finding:
    return ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; not compared with other clocks")
