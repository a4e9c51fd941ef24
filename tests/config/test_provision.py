"""Credentials for containers: their permissions, and when they are created."""

import asyncio
import os
import ssl
import stat
from pathlib import Path

import mqtt5
import pytest

from config.provision import provision
from runtime import CallboardError
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.broker import find_mosquitto
from tests.project import RENTAL
from transports.mqtt.access import password_file

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_secrets_have_safe_permissions_under_every_umask(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "secrets"
    before = os.umask(umask)
    try:
        assert provision(folder, RENTAL)
        assert not provision(folder, RENTAL), "nothing is missing, so nothing is created"
    finally:
        os.umask(before)
    modes = {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes.pop(".") == 0o700, "other users of this machine cannot open the folder"
    assert modes.pop("password") == 0o600
    assert {mode for name, mode in modes.items() if (folder / name).is_dir()} == {0o755}, (
        "the folders inside are readable when mounted in a container"
    )
    assert {mode for name, mode in modes.items() if (folder / name).is_file()} == {0o444}


def test_a_missing_secret_renews_all_secrets_and_removes_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    provision(folder, RENTAL)
    first = (folder / "wallet" / "peer-key.json").read_text()
    (folder / "fleet" / "mqtt-password").unlink()
    (folder / "mosquitto" / "device-passwords").unlink()
    (folder / "mosquitto" / "device-passwords").write_text("scooter-1:hash")
    assert provision(folder, RENTAL)
    assert (folder / "mosquitto" / "device-passwords").read_text() == "scooter-1:hash", "devices keep their passwords"
    assert (folder / "fleet" / "mqtt-password").read_text()
    assert (folder / "wallet" / "peer-key.json").read_text() != first
    other = tmp_path / "shared"
    other.mkdir()
    (other / "precious").touch()
    for wrong in (tmp_path, other):
        with pytest.raises(CallboardError, match="has other files in it"):
            provision(wrong, RENTAL)
    assert (other / "precious").exists()


def test_files_that_begin_with_a_dot_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    assert provision(tmp_path, RENTAL)
    (tmp_path / "password").unlink()  # incomplete: everything is written anew
    assert provision(tmp_path, RENTAL)
    assert (tmp_path / ".DS_Store").exists()


async def test_the_provisioned_broker_gives_a_device_its_user_name_as_client_id(tmp_path: Path) -> None:
    """On the real configuration of the containers, with other ports and paths."""
    secrets, ports = tmp_path / "secrets", (any_free_port(), any_free_port())
    provision(secrets, RENTAL)
    passwords = secrets / "mosquitto" / "device-passwords"
    assert passwords.read_text() == ""
    passwords.unlink()
    passwords.write_text(password_file({"scooter-1": "first", "scooter-2": "second"}))
    assert not provision(secrets, RENTAL), "everything is kept"
    text = (ROOT / "containers/mosquitto/mosquitto.conf").read_text().replace("/run/secrets", str(secrets / "mosquitto"))
    text = text.replace("listener 8883", f"listener {ports[0]}").replace("listener 8884", f"listener {ports[1]}")
    (tmp_path / "mosquitto.conf").write_text(text + ("user root\n" if os.geteuid() == 0 else ""))
    trusted = ssl.create_default_context(cafile=str(secrets / "shared" / "ca.pem"))

    async def connect(port: int, client_id: str, user: str, password: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("localhost", port, ssl=trusted)
        opened.append(writer)
        writer.write(mqtt5.ConnectPacket(client_id, username=user, password=password, clean_start=True).write())
        answer, _ = mqtt5.read(memoryview(await reader.read(1000)))
        assert isinstance(answer, mqtt5.ConnAckPacket)
        if answer.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            raise PermissionError(user)
        return reader, writer

    opened: list[asyncio.StreamWriter] = []
    process = await asyncio.create_subprocess_exec(find_mosquitto(), "-c", str(tmp_path / "mosquitto.conf"))
    try:
        fleet = (secrets / "fleet" / "mqtt-password").read_bytes()
        await eventually(lambda: _listens(ports[0]), "the broker is listening")
        reader, writer = await connect(ports[0], "fleet-node", "fleet", fleet)
        await connect(ports[1], "fleet-node", "scooter-1", b"first")
        await connect(ports[1], "scooter-1", "scooter-2", b"second")
        for port, user, password in ((ports[0], "scooter-1", b"first"), (ports[1], "fleet", fleet)):
            with pytest.raises(PermissionError):
                await connect(port, "fleet-node", user, password)
        writer.write(mqtt5.PingReqPacket().write())
        assert await asyncio.wait_for(reader.read(100), 10) == mqtt5.PingRespPacket().write(), "the node is still connected"
    finally:
        for writer in opened:
            writer.transport.abort()
        process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("localhost", port)
    except OSError:
        return False
    writer.close()
    return True
