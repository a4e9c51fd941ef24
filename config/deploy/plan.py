"""The plan of a deployment: what each service of a project needs to run in a separate process, whatever starts it."""

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec

from config import compose
from config.deploy.roles import create_roles
from config.load import Loaded
from config.provision import provision
from config.settings import Settings
from config.users import has_our_auth
from config.values import holds_secret, variable_name
from gateway.service import Gateway
from runtime import CallboardError
from runtime.service.service import Definition

HTTP_PORT = 8100
"""The port on which a service listens for other services, if they speak HTTP."""
HEALTH_PORT = 8099
"""The port of `/healthz`, `/readyz`, and `/metrics`. The image sets it."""
GATEWAY_PORT = 8000
BROKER_PORT = 8883
USER = 10001
"""The user and the group of the image."""
BROKER_USER = 10002
PRE_STOP = {True: 5, False: 2}
"""The seconds in which a gateway, or another service, keeps running before it is asked to stop, so that everybody learns of its end."""
_MARGIN = 5
"""The seconds that ending the process may take beside its work."""
_BROKER = "mosquitto"
_POSTGRES_PORT = 5432
_TAKEN = frozenset(
    (
        "deny-all",
        "allow-dns",
        "network",
        "settings",
        "shared",
        "mosquitto",
        "balancer",
        "broker",
        "migrations",
        "namespace",
        "secrets",
        "kustomization",
    )
)
"""Names of a deployment's own files, folders, and objects."""
_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


class Planned(NamedTuple):
    """One service of a deployment.

    Attributes:
        name: the name of its contract.
        host: the name under which others reach it.
        replicas: how many instances run.
        postgres_port: the port of PostgreSQL, where its database is, or 0. On PostgreSQL it may have several instances.
        subscribes: whether it applies the events of other services.
        has_file: whether its database is a file.
        calls: the services that it connects to, where services speak HTTP.
        environment: its own variables, beside those that all services have.
        files: its secret files, in the folder `<secrets>/<name>`.
        grace: the seconds that its stop may take.
    """

    name: str
    host: str
    replicas: int
    postgres_port: int
    subscribes: bool
    has_file: bool
    calls: tuple[str, ...]
    environment: Mapping[str, str]
    files: tuple[str, ...]
    grace: int

    @property
    def on_postgres(self) -> bool:
        """Whether its database is on PostgreSQL."""
        return self.postgres_port > 0

    @property
    def is_gateway(self) -> bool:
        """Whether it is the gateway, to which clients outside connect."""
        return self.name == Gateway.contract.name


class Plan(NamedTuple):
    """A deployment.

    Attributes:
        image: the container image of all services.
        secrets: the folder with the secret files, one for each service, and the public ones in `shared`.
        environment: the variables that all services have.
        services: the services; the gateway is the last.
        speaks_http: whether the services speak HTTP to each other.
        broker: whether a broker is part of the deployment.
        broker_url: where the broker is; None without one.
        outside_ports: the ports of issuers of access tokens, whose keys every service fetches.
        namespace: the first level of the topics.
    """

    image: str
    secrets: Path
    environment: Mapping[str, str]
    services: tuple[Planned, ...]
    speaks_http: bool
    broker: bool
    broker_url: str | None
    outside_ports: tuple[int, ...]
    namespace: str

    @property
    def broker_port(self) -> int:
        """The port of the broker."""
        return urlsplit(self.broker_url or "").port or BROKER_PORT

    @property
    def needs_postgres(self) -> bool:
        """Whether a database is on PostgreSQL."""
        return any(one.on_postgres for one in self.services)

    def callers(self, name: str) -> list[str]:
        """Return the services that connect to a service."""
        return [one.name for one in self.services if name in one.calls]


def make_plan(loaded: Loaded, folder: Path, image: str) -> Plan:
    """Return the plan of a project's deployment. Creates the secret files in `<folder>/secrets` that are missing.

    Raises:
        CallboardError: if the project has no services, or the files cannot be written.
    """
    settings = loaded.settings
    definitions = compose.definitions(settings)
    if not any(one.contract.name != Gateway.contract.name for one in definitions):
        raise CallboardError("no project here: expected services in callboard.toml, as `callboard new NAME` writes them")
    names = [one.contract.name for one in definitions]
    hosts = [host_of(name) for name in names]
    for name, host in zip(names, hosts, strict=True):
        if host in _TAKEN or hosts.count(host) > 1 or host.removesuffix("-migrations") in set(hosts) - {host}:
            raise CallboardError(
                f"a service called {name!r} cannot be deployed beside another part of that name: rename its contract"
            )
    secret_files = folder / "secrets"
    provision(secret_files, settings)
    kind = "mqtt" if settings.transport.kind == "memory" else settings.transport.kind
    broker_url = _broker_url(settings) if "mqtt" in kind else None
    broker = broker_url is not None and urlsplit(broker_url).hostname == _BROKER
    urls = _database_urls(settings, definitions, secret_files)
    given, own_files = _given(loaded, names, secret_files)
    environment = given | _environment(settings, kind, broker_url, names, broker=broker)
    services = tuple(
        _planned(settings, one, names, urls.get(one.contract.name), own_files.get(one.contract.name, {})) for one in definitions
    )
    return Plan(
        image, secret_files, environment, services, "http" in kind, broker, broker_url, _outside_ports(settings),
        settings.transport.mqtt.namespace,
    )  # fmt: skip


def _outside_ports(settings: Settings) -> tuple[int, ...]:
    urls = [urlsplit(one.jwks_url) for one in settings.identity.issuers if one.jwks_url is not None]
    return tuple(sorted({url.port or (443 if url.scheme == "https" else 80) for url in urls}))


def _port_of(url: str) -> int:
    """Return the port of the first host of a URL, which may have several."""
    port = urlsplit(url).netloc.rpartition("@")[2].partition(",")[0].rpartition(":")[2]
    return int(port) if port.isdecimal() else _POSTGRES_PORT


def host_of(name: str) -> str:
    """Return the host name of a service: that of its contract, in which DNS allows no `_`."""
    return name.replace("_", "-")


def _broker_url(settings: Settings) -> str:
    """Return the URL of the broker. One on this machine stands for a broker that is part of the deployment."""
    url = settings.transport.mqtt.brokers[0]
    return f"mqtts://{_BROKER}:{BROKER_PORT}" if urlsplit(url).hostname in _LOCAL else url


def _environment(settings: Settings, kind: str, broker_url: str | None, names: Sequence[str], *, broker: bool) -> dict[str, str]:
    found = {
        "CALLBOARD_TRANSPORT__KIND": kind,
        "CALLBOARD_HEALTH__HOST": "0.0.0.0",  # noqa: S104  # for probes, from outside of the container
        "CALLBOARD_HEALTH__PORT": str(HEALTH_PORT),
        "CALLBOARD_DATABASE__FOLDER": "/data",
    }
    if broker_url is not None:
        more = settings.transport.mqtt.urls
        found |= (
            {"CALLBOARD_TRANSPORT__MQTT__URLS": ",".join(more)}
            if more and not broker
            else {"CALLBOARD_TRANSPORT__MQTT__URL": broker_url}
        )
        found |= {
            "CALLBOARD_TRANSPORT__MQTT__NAMESPACE": settings.transport.mqtt.namespace,
            "CALLBOARD_TRANSPORT__MQTT__PASSWORD_FILE": "/run/secrets/mqtt-password",
        }
    if broker:
        found["CALLBOARD_TRANSPORT__MQTT__CA_FILE"] = "/run/shared/ca.pem"
    if "http" in kind:
        peers = [f"{name}=https://{host_of(name)}:{HTTP_PORT}" for name in names if name != Gateway.contract.name]
        found |= {
            "CALLBOARD_TRANSPORT__HTTP__HOST": "0.0.0.0",  # noqa: S104  # for the other containers
            "CALLBOARD_TRANSPORT__HTTP__PORT": str(HTTP_PORT),
            "CALLBOARD_TRANSPORT__HTTP__PEERS": ",".join(peers),
            "CALLBOARD_TRANSPORT__HTTP__KEY_FILE": "/run/secrets/peer-key.json",
            "CALLBOARD_TRANSPORT__HTTP__PEER_KEYS_FILE": "/run/shared/peer-keys.json",
            "CALLBOARD_TRANSPORT__HTTP__CERTIFICATE_FILE": "/run/secrets/certificate.pem",
            "CALLBOARD_TRANSPORT__HTTP__PRIVATE_KEY_FILE": "/run/secrets/private-key.pem",
            "CALLBOARD_TRANSPORT__HTTP__CA_FILE": "/run/shared/ca.pem",
        }
    return found


_OWN = re.compile(r"services\.([a-z][a-z0-9_-]*)\.settings\.(.+)")
_DERIVED = (
    "database.",
    "transport.",
    "health.",
    "dev.",
    "gateway.host",
    "gateway.port",
    "gateway.share_port",
    "gateway.expects",
    "gateway.owners",
    "gateway.drain_delay",
)
"""The settings that a deployment derives itself."""


def _given(loaded: Loaded, names: Sequence[str], folder: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the variables of the settings that the project sets, and the secret files of each service by variable."""
    shared = {
        variable_name(f"services.{name}.class"): f"{cls.__module__}:{cls.__qualname__}"
        for name, cls in compose.catalogue(loaded.settings).items()
        if name != Gateway.contract.name
    }
    files: dict[str, dict[str, str]] = {}
    structs = {
        field.name
        for name in names
        if name != Gateway.contract.name and (values := compose.own_values(loaded.settings, name)) is not None
        for field in values.fields.values()
        if holds_secret(field.type)
    }
    for setting in compose.rows(loaded):
        if setting.source in ("default", "not set") or setting.name.startswith(_DERIVED):
            continue
        own = _OWN.fullmatch(setting.name)
        if own is None and setting.name.startswith("services."):
            continue  # its class, its replicas, or its database
        if own is not None and (setting.secret or setting.name in structs):
            name = next(name for name in names if name.replace("-", "_") == own[1].replace("-", "_"))
            file = own[2].replace("_", "-").replace(".", "-")
            _write_secret(folder / name / file, _text(setting.value))
            files.setdefault(name, {})[f"{variable_name(setting.name)}_FILE"] = file
        elif setting.secret:
            raise CallboardError(
                f"{setting.source} sets {setting.name}, which is secret and no service's own: give it to the containers yourself"
            )
        else:
            shared[variable_name(setting.name)] = _text(setting.value)
    return shared, files


def _text(value: Any) -> str:
    """Return a setting as the text of a variable."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case tuple() | list() if all(isinstance(one, str) and "," not in one for one in cast(Sequence[object], value)):
            return ",".join(cast(Sequence[str], value))
        case _:
            return msgspec.json.encode(value).decode()


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o444)  # the folder above is open to its owner only


def _database_urls(settings: Settings, definitions: Sequence[Definition], folder: Path) -> dict[str, str]:
    """Return the URL of each database on PostgreSQL, each with a role of its own, and write it with the statements that make the roles."""
    urls: dict[str, str] = {}
    passwords: dict[str, str] = {}
    for definition in definitions:
        name = definition.contract.name
        url = compose.database_url(settings, name) if definition.needs_database else None
        if url is None:
            continue
        parts = urlsplit(url)
        file = folder / name / "database-url"
        hosts = parts.netloc.rpartition("@")[2]
        kept = urlsplit(file.read_text(encoding="utf-8")) if file.exists() else None
        password = kept.password if kept is not None and kept.password else secrets.token_urlsafe(24)
        passwords[name] = password
        pairs = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in ("user", "password")]
        query = urlencode(pairs, quote_via=quote)
        urls[name] = parts._replace(netloc=f"{quote(name)}:{quote(password)}@{hosts}", query=query).geturl()
        _write_secret(file, urls[name])
    if passwords:
        path = folder.parent / "postgresql-roles.sql"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(create_roles(passwords), encoding="utf-8")
    return urls


def _planned(
    settings: Settings, definition: Definition, names: Sequence[str], url: str | None, own: Mapping[str, str]
) -> Planned:
    name = definition.contract.name
    is_gateway = name == Gateway.contract.name
    has_file = definition.needs_database and url is None
    wanted = compose.replicas(settings, name)
    environment = {"CALLBOARD_TRANSPORT__MQTT__USERNAME": name} if _speaks_mqtt(settings) else {}
    files = ["certificate.pem", "private-key.pem", "peer-key.json", "mqtt-password"]
    if url is not None:
        environment["CALLBOARD_DATABASE__URL_FILE"] = "/run/secrets/database-url"
        files.append("database-url")
    if definition.needs_database and url is not None and settings.database.pooled:
        environment["CALLBOARD_DATABASE__POOLED"] = "true"
    if is_gateway:
        owners = compose.with_route_owners(settings).gateway.owners
        environment |= {
            "CALLBOARD_GATEWAY__HOST": "0.0.0.0",  # noqa: S104  # clients outside of the container
            "CALLBOARD_GATEWAY__PORT": str(GATEWAY_PORT),
            "CALLBOARD_GATEWAY__EXPECTS": ",".join(compose.expected(settings)),
            "CALLBOARD_GATEWAY__OWNERS": ",".join(owners),
            "CALLBOARD_GATEWAY__DRAIN_DELAY": str(_drain_delay(settings)),
        }
    if name == "auth" and has_our_auth(settings) and not own:
        environment["CALLBOARD_SERVICES__AUTH__SETTINGS__USERS_FILE"] = "/run/secrets/users.json"
        files.append("users.json")
    for variable, file in own.items():
        environment[variable] = f"/run/secrets/{file}"
        files.append(file)
    calls = {other for other in definition.needs if other in names} | ({"auth"} & set(names))
    if is_gateway:
        calls = set(names)
    grace = PRE_STOP[is_gateway] + (_drain_delay(settings) if is_gateway else 0) + settings.node.drain_timeout + _MARGIN
    return Planned(
        name, host_of(name), 1 if has_file else wanted if wanted > 1 else 2, 0 if url is None else _port_of(url), bool(definition.events),
        has_file,
        tuple(sorted(calls - {name})), environment, tuple(files), int(grace) + 1,
    )  # fmt: skip


def _speaks_mqtt(settings: Settings) -> bool:
    return settings.transport.kind == "memory" or "mqtt" in settings.transport.kind


def _drain_delay(settings: Settings) -> float:
    """Return for how long a gateway keeps serving after SIGTERM: long enough for a balancer that asks for `/readyz`."""
    return settings.gateway.drain_delay or 3.0
