"""The settings tree: everything that can be configured from outside, with defaults."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from gateway.settings import GatewaySettings, IdentitySettings
from runtime import NodeSettings, Secret, Struct
from transports.http.settings import HttpSettings
from transports.memory import MemorySettings
from transports.mqtt.settings import MqttSettings

EXAMPLE_USERS: dict[str, str] = {
    "rider@example.com": "rider",
    "operator@example.com": "operator",
    "admin@example.com": "admin",
}
"""The users that development systems start with: the role of each email address."""


class DatabaseSettings(Struct):
    """Where services store their databases."""

    folder: str = ".callboard"
    """The directory of the database files. The file of a service is `<folder>/<service>.sqlite`."""
    url: Annotated[Secret[str], Meta(pattern=r"^postgres(ql)?://")] | None = None
    """A PostgreSQL database in which each service has a schema of its name, such as `postgresql://user:password@host:5432/callboard`. Without
    it, services use files. Several hosts, with commas between them, are tried in turn until one takes writes."""
    pooled: bool = False
    """Whether a pooler such as PgBouncer may give each transaction another connection to PostgreSQL (its transaction mode)."""
    durable: bool = True
    """Whether a committed transaction survives a power failure. If false, it survives only the end of the process."""


class HealthSettings(Struct):
    """The HTTP endpoint on which a node started by `callboard run` serves `/healthz`, `/readyz`, and `/metrics`."""

    host: str = "127.0.0.1"
    """The address to listen on, or a name that has one, such as `localhost`. `0.0.0.0` and `::` are all addresses of the machine."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """The port to listen on; 0 turns the endpoint off."""


class LogSettings(Struct):
    """The log, which is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """How records are written: `text` for people, `json` for programs, one object per line. By default, `text` in a terminal and `json` elsewhere."""


class ServiceLogSettings(Struct):
    """The log of a service."""

    level: Literal["debug", "info", "warning", "error"] | None = None
    """The least severe level that it writes. By default, that of `log.level`."""


class TransportSettings(Struct):
    """How messages travel between nodes."""

    kind: Literal["memory", "mqtt", "http", "http+mqtt"] = "memory"
    """The transport. `http+mqtt` sends requests over HTTP and signals over MQTT."""
    memory: MemorySettings = MemorySettings()
    mqtt: MqttSettings = MqttSettings()
    http: HttpSettings = HttpSettings()


class DevSettings(Struct):
    """Settings of the development commands `callboard dev` and `callboard up`."""

    password: Annotated[Secret[str], Meta(min_length=8)] | None = None
    """The password of rider@example.com, operator@example.com, and admin@example.com. If it is not set, one is generated and printed."""


class ServiceSettings(Struct, rename={"class_": "class"}):
    """A service of the project, as `[services.NAME]` in `callboard.toml`."""

    class_: str
    """Its class, as `package.module:Class`."""
    replicas: Annotated[int, Meta(ge=1)] = 1
    """How many processes `callboard up` runs it in."""
    database: Annotated[Secret[str], Meta(pattern=r"(\.sqlite|^postgres(ql)?://.+)$")] | None = None
    """Its own database: a file whose name ends in `.sqlite`, or a URL as `database.url`. By default it is in `database.url`, or else in
    `<database.folder>/<service>.sqlite`."""
    log: ServiceLogSettings = ServiceLogSettings()
    settings: Any = None
    """Its own settings: an instance of its `Settings`, or what is to become one."""


class Settings(Struct):
    """All settings. The environment variable `CALLBOARD_<SECTION>__<KEY>` sets a setting of a section."""

    services: dict[str, ServiceSettings] = {}
    """The services of the project, by name, in the order of starting."""
    node: NodeSettings = NodeSettings()
    transport: TransportSettings = TransportSettings()
    database: DatabaseSettings = DatabaseSettings()
    log: LogSettings = LogSettings()
    health: HealthSettings = HealthSettings()
    gateway: GatewaySettings = GatewaySettings()
    identity: IdentitySettings = IdentitySettings()
    dev: DevSettings = DevSettings()
