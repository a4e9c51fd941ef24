"""A private mosquitto broker for `callboard up`: its configuration, credentials, and access list."""

import os
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from runtime import CallboardError, Struct
from runtime.service.service import Definition
from runtime.sockets import any_free_port
from transports.mqtt.access import DeviceRights, access_list, device_access_list, password_file
from transports.mqtt.settings import MqttSettings

DEVICES = DeviceRights(says=("fleet.Telemetry",), hears=("fleet.Lock", "fleet.Unlock"))
"""The messages that a scooter may publish and receive. They are limited to its id, which is also its user name."""

_AS_ROOT = ["user root"] if os.geteuid() == 0 else []
"""Without this line, a mosquitto started by root switches to a user that may not read its files."""
_SEARCH_PATH = ("/usr/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")
"""Where packages install mosquitto if its directory is not on PATH."""


class Credentials(Struct):
    """The credentials of a private broker. They are secret: never log them.

    Attributes:
        url: the URL of the broker for services.
        devices_url: the URL of the broker for devices. Each has one connection there, whose client id is its user name.
        namespace: the first level of every topic.
        services: the password of each service, by its name, which is also its user name.
        devices: the password of each device, by its id, which is also its user name.
    """

    url: str
    namespace: str
    services: dict[str, str]
    devices: dict[str, str] = {}
    devices_url: str = ""

    def __repr__(self) -> str:
        return f"<Credentials for {self.url}: {len(self.services)} services, {len(self.devices)} devices>"


class PrivateBroker:
    """A broker for one system, on a free port of this machine.

    Args:
        folder: the database folder. The broker's files are in its subfolder `broker`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "broker"

    def prepare(self, definitions: Sequence[Definition], namespace: str) -> Credentials:
        """Write the files that the broker needs and return its credentials. Existing credentials are kept.

        Raises:
            CallboardError: if a file cannot be read or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            before = self.credentials()
            generated = {definition.contract.name: secrets.token_urlsafe(24) for definition in definitions}
            kept = {} if before is None else {name: old for name, old in before.services.items() if name in generated}
            services = generated | kept
            ports = any_free_port(), any_free_port()
            urls = [f"mqtt://127.0.0.1:{port}" for port in ports]
            found = Credentials(urls[0], namespace, services, {} if before is None else before.devices, urls[1])
            self._write("access", access_list(definitions, namespace))
            self._write("device-access", device_access_list(DEVICES, namespace))
            self._write("mosquitto.conf", _configuration(self.folder, *ports))
            self._save(found)
            for name, password in services.items():
                self._write(f"{name}.password", password)
        except OSError as error:
            raise CallboardError(
                f"{error.filename}: {error.strerror}: choose another folder with CALLBOARD_DATABASE__FOLDER"
            ) from error
        return found

    def command(self) -> list[str]:
        """Return the command that starts the broker.

        The broker stops when its standard input ends, so that it does not outlive the process that started it.

        Raises:
            CallboardError: if mosquitto is not installed.
        """
        return _command(self.folder / "mosquitto.conf")

    def credentials(self) -> Credentials | None:
        """Return the existing credentials, or None if `prepare` has not run yet.

        Raises:
            CallboardError: if the file exists but cannot be read.
        """
        try:
            return msgspec.json.decode((self.folder / "credentials.json").read_bytes(), type=Credentials)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise CallboardError(f"{self.folder}/credentials.json cannot be read: {error}") from None

    def admit(self, devices: Mapping[str, str]) -> None:
        """Let devices connect, given the password of each by its id. The running broker reloads its password file at once.

        Raises:
            CallboardError: if no private broker exists in the folder or it is not running.
        """
        known = self.credentials()
        if known is None:
            raise CallboardError(f"there is no private broker in {self.folder}: start `callboard up` first")
        self._save(msgspec.structs.replace(known, devices=known.devices | dict(devices)))
        try:
            os.kill(int((self.folder / "pid").read_text()), signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise CallboardError(f"the broker of {self.folder} is not running ({error}): start `callboard up` first") from None

    def _save(self, found: Credentials) -> None:
        self._write("passwords", password_file(found.services))
        self._write("device-passwords", password_file(found.devices))
        self._write("credentials.json", msgspec.json.encode(found).decode())

    def _write(self, name: str, text: str) -> None:
        path, new = self.folder / name, self.folder / f"{name}.new"
        new.touch(mode=0o600)
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def _configuration(folder: Path, port: int, devices_port: int) -> str:
    here = folder.resolve()
    lines = [
        "per_listener_settings true",
        f"listener {port} 127.0.0.1",
        "allow_anonymous false",
        f"password_file {here}/passwords",
        f"acl_file {here}/access",
        f"listener {devices_port} 127.0.0.1",
        "use_username_as_clientid true",  # so that no device can take the place of another one, or of a node
        "allow_anonymous false",
        f"password_file {here}/device-passwords",
        f"acl_file {here}/device-access",
        "set_tcp_nodelay true",  # without it, a request waits for the acknowledgement of the previous one
        f"pid_file {here}/pid",
        "persistence false",  # the broker holds nothing that must survive a restart
        "max_queued_messages 10000",
        f"max_packet_size {MqttSettings().max_packet}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    return "\n".join([*lines, *_AS_ROOT]) + "\n"


def open_broker(folder: Path) -> tuple[list[str], str]:
    """Return the command that starts a broker without authentication, for benchmarks, and the broker's URL.

    Args:
        folder: where to write the broker's configuration.

    Raises:
        CallboardError: if mosquitto is not installed.
    """
    port = any_free_port()
    lines = [
        f"listener {port} 127.0.0.1", "set_tcp_nodelay true", "allow_anonymous true", "persistence false",
        "max_queued_messages 0", "max_inflight_messages 0", "log_type none",
    ]  # fmt: skip
    file = folder / "mosquitto.conf"
    file.write_text("\n".join([*lines, *_AS_ROOT]) + "\n", encoding="utf-8")
    return _command(file), f"mqtt://127.0.0.1:{port}"


def _command(configuration: Path) -> list[str]:
    """Return the command that starts mosquitto and stops it when standard input ends.

    Raises:
        CallboardError: if mosquitto is not installed.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SEARCH_PATH))
    if program is None:
        raise CallboardError(
            "mosquitto is not on PATH: install it (Debian: apt-get install mosquitto; macOS: brew install mosquitto)"
        )
    script = 'exec 3<&0; (cat <&3; kill $$) >/dev/null 2>&1 & exec "$0" -c "$1" 3<&-'
    return ["/bin/sh", "-c", script, program, str(configuration)]
