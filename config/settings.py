"""The settings tree: everything that can be said from outside, with its defaults."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gateway.settings import GatewaySettings
from runtime import NodeSettings, Struct
from services.auth.service import AuthSettings
from services.devices.service import DeviceSettings
from services.fleet.service import FleetSettings
from services.wallet.service import WalletSettings
from transports.http.settings import HttpSettings
from transports.memory import MemorySettings
from transports.mqtt.settings import MqttSettings


class DatabaseSettings(Struct):
    """Where services keep their databases."""

    folder: str = ".callboard"
    """Each service's own file is `<folder>/<service>.sqlite`."""
    durable: bool = True
    """Whether a commit survives a loss of power, not only the end of the process."""


class HealthSettings(Struct):
    """Where a node of `callboard run` says how it is: `/healthz`, `/readyz` and `/metrics`, over HTTP."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """0 says it nowhere."""


class LogSettings(Struct):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class TransportSettings(Struct):
    """What carries messages between nodes."""

    kind: Literal["memory", "mqtt", "http", "http+mqtt"] = "memory"
    """`http+mqtt` sends requests by HTTP and signals by MQTT."""
    memory: MemorySettings = MemorySettings()
    mqtt: MqttSettings = MqttSettings()
    http: HttpSettings = HttpSettings()


class DevSettings(Struct):
    """What `callboard dev` adds."""

    __secret__: ClassVar = frozenset({"password"})

    password: Annotated[str, Meta(min_length=8)] | None = None
    """Of rider@example.com, operator@example.com and admin@example.com; without it one is made and printed."""


class Settings(Struct):
    """All settings. `CALLBOARD_<SECTION>__<KEY>` sets each of them from the environment."""

    services: tuple[str, ...] = ()
    """More services than the reference system's, as `package.module:Class`."""
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
