"""The rules for mosquitto's dynamic-security plugin that docs/wire.md gives: services work by them, and a stranger cannot join a group."""

import base64
import hashlib
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import aiomqtt
import msgspec
import pytest

from runtime import Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.system.process import ROOT
from tests.transports.mqtt.echo import Echo, Heard, Say, echo, transport

PLUGIN = next(
    (found for library in ("/usr/lib", "/opt/homebrew/lib") for found in Path(library).rglob("mosquitto_dynamic_security.so")),
    None,
)
RULES = re.search(
    r"^```\n(role <service>\n.*?)^```", (ROOT / "docs" / "wire.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
PEERS = {"echo": ["test"], "test": ["echo"], "hall": ["echo"]}
"""Two services and a device, each with the services that it talks to."""
SALT = b"twelve bytes"
"""Of the length that the plugin demands."""

pytestmark = pytest.mark.skipif(PLUGIN is None, reason="this mosquitto comes without its dynamic-security plugin")


def role(user: str, kind: str) -> dict[str, object]:
    """Return a role by the rules of the page."""
    assert RULES is not None
    rules = dict(re.findall(r"role <(\w+)>\n(.*?)(?:\n\n|\Z)", RULES[1] + "\n", re.DOTALL))[kind]
    acls: list[dict[str, object]] = []
    for line in rules.splitlines():
        acl_type, topic = line.split()
        for peer in PEERS[user]:
            named = topic.replace(f"<{kind}>", user).replace("<peer>", peer)
            acls.append({"acltype": acl_type, "topic": named, "priority": 0, "allow": True})
    return {"rolename": user, "acls": acls}


def client(user: str) -> dict[str, object]:
    digest = hashlib.pbkdf2_hmac("sha512", user.encode(), SALT, 101, 64)
    return {
        "username": user, "password": base64.b64encode(digest).decode(), "salt": base64.b64encode(SALT).decode(),
        "iterations": 101, "roles": [{"rolename": user}],
    }  # fmt: skip


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncGenerator[Broker, None]:
    access = {"publishClientSend": False, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    roles = [role("echo", "service"), role("test", "service"), role("hall", "device")]
    file = tmp_path / "dynamic-security.json"
    file.write_bytes(
        msgspec.json.encode(
            {"defaultACLAccess": access, "roles": roles, "groups": [], "clients": [client(user) for user in PEERS]}
        )
    )
    async with Broker(tmp_path, "allow_anonymous false", f"plugin {PLUGIN}", f"plugin_opt_config_file {file}") as broker:
        yield broker


async def test_services_and_devices_work_by_the_rules_of_the_page(secured: Broker) -> None:
    async with (
        Node([Echo], transport(secured.url, username="echo", password="echo")) as server,
        Node([], transport(secured.url, username="test", password="test")) as other,
        aiomqtt.Client(
            "127.0.0.1", secured.port, username="hall", password="hall", protocol=aiomqtt.ProtocolVersion.V5
        ) as device,
    ):
        assert await other.client("test", (echo,)).request(Say("?"), timeout=5) == "?"
        service = server.service(Echo)
        assert service is not None
        await device.publish("callboard/1/signal/echo/Heard/hall", b'{"room":"hall","text":"by a device"}', qos=1)
        await eventually(lambda: service.heard == [Heard("hall", "?"), Heard("hall", "by a device")], "both signals have arrived")
        await device.publish("callboard/1/signal/echo/Heard/cellar", b'{"room":"cellar","text":"forged"}', qos=1)
        for stolen in (
            "$share/echo/callboard/1/request/echo/+/+", "$share/echo/callboard/1/signal/echo/+/+", "callboard/1/inbox/echo/+/+", "#",
        ):  # fmt: skip
            (code,) = await device.subscribe(stolen, qos=1)
            assert str(code) == "Not authorized", f"a device may not subscribe to {stolen}"
        assert await other.client("test", (echo,)).request(Say("!"), timeout=5) == "!"
        assert Heard("cellar", "forged") not in service.heard
