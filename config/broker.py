"""A private mosquitto for `callboard up`: its settings, a credential for each service, and who may say and hear what."""

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
from transports.mqtt.access import DeviceRights, access_list, password_file
from transports.mqtt.settings import MqttSettings

DEVICES = DeviceRights(says=("fleet.Telemetry",), hears=("fleet.Lock", "fleet.Unlock"))
"""What a scooter may say and hear of itself: its user name is its id."""

_AS_ROOT = ["user root"] if os.geteuid() == 0 else []
"""Else mosquitto becomes a user who may not read these files."""
_ELSEWHERE = ("/usr/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")


class Credentials(Struct):
    """What stands in the broker's folder for those who may connect to it. Never log it."""

    url: str
    namespace: str
    services: dict[str, str]
    devices: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Credentials for {self.url}: {len(self.services)} services, {len(self.devices)} devices>"


class PrivateBroker:
    """A broker of a system's own, in a folder of its own, on a free port of this machine.

    Args:
        folder: where the databases are; the broker's files go to `broker/` in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "broker"

    def prepare(self, definitions: Sequence[Definition], namespace: str) -> Credentials:
        """Writes the files that it starts with. Credentials that were drawn before stay as they are.

        Raises:
            CallboardError: they cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            before = self.credentials()
            drawn = {definition.contract.name: secrets.token_urlsafe(24) for definition in definitions}
            services = drawn if before is None else drawn | {n: p for n, p in before.services.items() if n in drawn}
            port = any_free_port()
            found = Credentials(f"mqtt://127.0.0.1:{port}", namespace, services, {} if before is None else before.devices)
            self._write("access", access_list(definitions, namespace, devices=DEVICES))
            self._write("mosquitto.conf", _settings(self.folder, port))
            self._keep(found)
            for name, password in services.items():
                self._write(f"{name}.password", password)
        except OSError as error:
            raise CallboardError(
                f"{error.filename}: {error.strerror}: choose another folder with CALLBOARD_DATABASE__FOLDER"
            ) from error
        return found

    def command(self) -> list[str]:
        """What starts it. It ends when its standard input does, so that it outlives nobody. Raises like `_command`."""
        return _command(self.folder / "mosquitto.conf")

    def credentials(self) -> Credentials | None:
        """Those that were drawn, if any were."""
        try:
            return msgspec.json.decode((self.folder / "credentials.json").read_bytes(), type=Credentials)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise CallboardError(f"{self.folder}/credentials.json cannot be read: {error}") from None

    def admit(self, devices: Mapping[str, str]) -> None:
        """Lets devices in, by name and password; the broker learns of them at once.

        Raises:
            CallboardError: there is no private broker here.
        """
        known = self.credentials()
        if known is None:
            raise CallboardError(f"there is no private broker in {self.folder}: start `callboard up` first")
        self._keep(msgspec.structs.replace(known, devices=known.devices | dict(devices)))
        try:
            os.kill(int((self.folder / "pid").read_text()), signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise CallboardError(f"the broker of {self.folder} does not run ({error}): start `callboard up` first") from None

    def _keep(self, found: Credentials) -> None:
        self._write("passwords", password_file(found.services | found.devices))
        self._write("credentials.json", msgspec.json.encode(found).decode())

    def _write(self, name: str, text: str) -> None:
        path, new = self.folder / name, self.folder / f"{name}.new"
        new.touch(mode=0o600)
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def _settings(folder: Path, port: int) -> str:
    here = folder.resolve()
    lines = [
        f"listener {port} 127.0.0.1",
        "set_tcp_nodelay true",  # else a request waits for the acknowledgement of the one before
        "allow_anonymous false",
        f"password_file {here}/passwords",
        f"acl_file {here}/access",
        f"pid_file {here}/pid",
        "persistence false",  # nothing that must not be lost is in the broker
        "max_queued_messages 10000",
        f"max_packet_size {MqttSettings().max_packet}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    return "\n".join([*lines, *_AS_ROOT]) + "\n"


def open_broker(folder: Path) -> tuple[list[str], str]:
    """What starts a broker that lets everybody in, for a measurement, and its URL. Raises like `_command`."""
    port = any_free_port()
    lines = [
        f"listener {port} 127.0.0.1", "set_tcp_nodelay true", "allow_anonymous true", "persistence false",
        "max_queued_messages 0", "max_inflight_messages 0", "log_type none",
    ]  # fmt: skip
    file = folder / "mosquitto.conf"
    file.write_text("\n".join([*lines, *_AS_ROOT]) + "\n", encoding="utf-8")
    return _command(file), f"mqtt://127.0.0.1:{port}"


def _command(settings: Path) -> list[str]:
    """What starts mosquitto.

    Raises:
        CallboardError: there is none on this machine.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_ELSEWHERE))
    if program is None:
        raise CallboardError(
            "mosquitto is not on PATH: install it (Debian: apt-get install mosquitto; macOS: brew install mosquitto)"
        )
    leash = 'exec 3<&0; (cat <&3; kill $$) >/dev/null 2>&1 & exec "$0" -c "$1" 3<&-'
    return ["/bin/sh", "-c", leash, program, str(settings)]
