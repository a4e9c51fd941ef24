"""A deployment for systemd: a unit for each service on one machine, and a target that starts and stops all of them.

The units run `/opt/callboard/bin/callboard`, with settings from `/etc/callboard` and secrets that systemd hands to each service alone.
"""

from collections.abc import Iterator

from config.deploy.mosquitto import BROKER_FILES, CONFIGURATION
from config.deploy.plan import HTTP_PORT, Plan, Planned

_BINARY = "/opt/callboard/bin/callboard"
_SETTINGS = "/etc/callboard"
_SECRETS = "/run/secrets/"
_STOP_MARGIN = 5
_START_SECONDS = 660
"""The seconds that a start may take, with its migrations."""
_HEALTH = 9200
"""The port of `/healthz` of the first service. Each has one of its own."""
_GATEWAY_HEALTH = "91"
"""How that of a gateway begins. Its number follows, in two digits."""
_HARDENED = (
    "Restart=on-failure",
    "RestartSec=1",
    "DynamicUser=yes",
    f"WorkingDirectory={_SETTINGS}",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "PrivateDevices=yes",
    "PrivateTmp=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
)


def files(plan: Plan) -> dict[str, bytes]:
    """Return the units, and a file of settings for each service, by their names."""
    units = {"callboard.target": _target(plan)}
    for number, one in enumerate(plan.services):
        units[f"callboard-{one.host}{'@' if one.is_gateway else ''}.service"] = _unit(plan, one)
        units[f"{one.host}.env"] = _environment(plan, one, number)
    if plan.broker:
        units["callboard-broker.service"] = _broker_unit()
        units["mosquitto.conf"] = CONFIGURATION.replace(_SECRETS, "/run/credentials/callboard-broker.service/")
    units["install.sh"] = _install(plan)
    return {name: text.encode() for name, text in units.items()}


def _units(plan: Plan) -> Iterator[str]:
    if plan.broker:
        yield "callboard-broker.service"
    for one in plan.services:
        if one.is_gateway:
            yield from (f"callboard-{one.host}@{number:02}.service" for number in range(1, one.replicas + 1))
        else:
            yield f"callboard-{one.host}.service"


def _target(plan: Plan) -> str:
    return (
        "[Unit]\n"
        "Description=The services of Callboard\n"
        f"Wants={' '.join(_units(plan))}\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def _unit(plan: Plan, one: Planned) -> str:
    state = f"callboard/{one.host}{'-%i' if one.is_gateway else ''}"
    own = {"CALLBOARD_DATABASE__FOLDER": f"%S/{state}"} | _files(plan, one)
    if one.is_gateway:  # the instances of a template listen on one port, and have health endpoints of their own
        own |= {"CALLBOARD_HEALTH__PORT": f"{_GATEWAY_HEALTH}%i", "CALLBOARD_GATEWAY__SHARE_PORT": "true"}
    service = [
        "Type=exec",
        f"EnvironmentFile={_SETTINGS}/{one.host}.env",
        *(f"Environment={name}={value}" for name, value in own.items()),
        *([f"ExecStartPre={_BINARY} migrate {one.name}"] if one.on_postgres else []),
        f"ExecStart={_BINARY} run {one.name}",
        "KillMode=mixed",
        f"TimeoutStartSec={_START_SECONDS}",
        f"TimeoutStopSec={one.grace + _STOP_MARGIN}",
        "LimitNOFILE=65536",
        f"StateDirectory={state}",
        "StateDirectoryMode=0700",
        *(f"LoadCredential={file}:{_SETTINGS}/secrets/{one.name}/{file}" for file in one.files),
    ]
    return _text(f"Callboard: {one.name}{' %i' if one.is_gateway else ''}", service, after_broker=plan.broker)


def _broker_unit() -> str:
    folder = f"{_SETTINGS}/secrets/mosquitto"
    service = [
        "Type=exec",
        f"ExecStart=/usr/sbin/mosquitto -c {_SETTINGS}/mosquitto.conf",
        *(f"LoadCredential={file}:{folder}/{file}" for file in BROKER_FILES),
    ]
    return _text("Callboard: the broker", service)


def _text(description: str, service: list[str], *, after_broker: bool = False) -> str:
    unit = [
        "[Unit]",
        f"Description={description}",
        "Wants=network-online.target",
        f"After=network-online.target{' callboard-broker.service' * after_broker}",  # and so it stops before the broker does
        "PartOf=callboard.target",
        "StartLimitIntervalSec=0",
    ]
    return "\n".join([*unit, "", "[Service]", *service, *_HARDENED, "", "[Install]", "WantedBy=callboard.target"]) + "\n"


def _files(plan: Plan, one: Planned) -> dict[str, str]:
    """Return the variables that name a service's secret files, which systemd puts into a folder of the unit (`%d`)."""
    return {
        name: f"%d/{value.removeprefix(_SECRETS)}"
        for name, value in {**plan.environment, **one.environment}.items()
        if value.startswith(_SECRETS)
    }


def _environment(plan: Plan, one: Planned, number: int) -> str:
    found = {name: value for name, value in {**plan.environment, **one.environment}.items() if not value.startswith(_SECRETS)}
    found = {name: value.replace("/run/shared/", f"{_SETTINGS}/secrets/shared/") for name, value in found.items()}
    del found["CALLBOARD_DATABASE__FOLDER"], found["CALLBOARD_HEALTH__PORT"]
    found["CALLBOARD_HEALTH__HOST"] = "127.0.0.1"
    if not one.is_gateway:
        found["CALLBOARD_HEALTH__PORT"] = str(_HEALTH + number)
    if plan.broker:
        found["CALLBOARD_TRANSPORT__MQTT__URL"] = f"mqtts://localhost:{plan.broker_port}"
    if plan.speaks_http:
        ports = {other.name: HTTP_PORT + at for at, other in enumerate(plan.services) if not other.is_gateway}
        found["CALLBOARD_TRANSPORT__HTTP__HOST"] = "127.0.0.1"
        found["CALLBOARD_TRANSPORT__HTTP__PORT"] = str(ports.get(one.name, 0))
        found["CALLBOARD_TRANSPORT__HTTP__PEERS"] = ",".join(f"{name}=https://localhost:{port}" for name, port in ports.items())
    return "".join(f"{name}={_quoted(value)}\n" for name, value in found.items())


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _install(plan: Plan) -> str:
    return (
        "#!/bin/sh\n"
        "# Installs the units on this machine. Run it as root, in this folder. It starts nothing: systemctl start callboard.target\n"
        "set -eu\n"
        f"install -d -m 755 {_SETTINGS}\n"
        f"install -m 644 ./*.env {'./mosquitto.conf ' if plan.broker else ''}{_SETTINGS}\n"
        f"rm -rf {_SETTINGS}/secrets && cp -R secrets {_SETTINGS}/secrets && chown -R root:root {_SETTINGS}/secrets\n"
        f"chmod 711 {_SETTINGS}/secrets && chmod 700 {_SETTINGS}/secrets/* && chmod 755 {_SETTINGS}/secrets/shared\n"
        "install -m 644 ./callboard*.service ./callboard.target /etc/systemd/system\n"
        "systemctl daemon-reload\n"
        f"systemctl enable callboard.target {' '.join(_units(plan))}\n"
    )
