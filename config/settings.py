"""The settings tree: everything that can be configured from outside, with defaults."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gateway.settings import GatewaySettings
from runtime import NodeSettings, Struct
from services.auth.messages import Role
from services.auth.service import AuthSettings
from services.devices.service import DeviceSettings
from services.fleet.service import FleetSettings
from services.wallet.service import WalletSettings
from transports.http.settings import HttpSettings
from transports.memory import MemorySettings
from transports.mqtt.settings import MqttSettings

EXAMPLE_USERS: dict[str, Role] = {
    "rider@example.com": "rider",
    "operator@example.com": "operator",
    "admin@example.com": "admin",
}
"""The users that development systems start with: the role of each email address."""


class DatabaseSettings(Struct):
    """Where services store their databases."""

    folder: str = ".callboard"
    """The directory of the database files. The file of a service is `<folder>/<service>.sqlite`."""
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


class TransportSettings(Struct):
    """How messages travel between nodes."""

    kind: Literal["memory", "mqtt", "http", "http+mqtt"] = "memory"
    """The transport. `http+mqtt` sends requests over HTTP and signals over MQTT."""
    memory: MemorySettings = MemorySettings()
    mqtt: MqttSettings = MqttSettings()
    http: HttpSettings = HttpSettings()


class DevSettings(Struct):
    """Settings of the development commands `callboard dev` and `callboard up`."""

    __secret__: ClassVar = frozenset({"password"})

    password: Annotated[str, Meta(min_length=8)] | None = None
    """The password of rider@example.com, operator@example.com, and admin@example.com. If it is not set, one is generated and printed."""


class Settings(Struct):
    """All settings. The environment variable `CALLBOARD_<SECTION>__<KEY>` sets a setting of a section."""

    services: tuple[str, ...] = ()
    """Services to run besides those of the reference system, as `package.module:Class`."""
    node: NodeSettings = NodeSettings()
    transport: TransportSettings = TransportSettings()
    database: DatabaseSettings = DatabaseSettings()
    log: LogSettings = LogSettings()
    health: HealthSettings = HealthSettings()
    gateway: GatewaySettings = GatewaySettings()
    auth: AuthSettings = AuthSettings()
    wallet: WalletSettings = WalletSettings()
    fleet: FleetSettings = FleetSettings()
    devices: DeviceSettings = DeviceSettings()
    dev: DevSettings = DevSettings()
