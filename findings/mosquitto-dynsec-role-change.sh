#!/usr/bin/env bash
# mosquitto's dynamic-security plugin disconnects every client that has a role when a permission is added to that role.
#
# Versions:  mosquitto 2.0 (Debian 12: 2.0.11) with its own plugin, and paho-mqtt 2.2.0 as the client.
# Input:     two connected clients with the role "reader" and one with the role "other"; then the command `addRoleACL` gives "reader" one more
#            permission, which takes nothing away from anybody.
# Behaviour: both readers are disconnected with reason code 0x98 (Administrative action). The third client stays connected.
# Output:    reader-1: disconnected, 0x98
#            reader-2: disconnected, 0x98
#            other: connected
# Remedy:    expect a cut of all clients of a role at each change. Give a new client a new role instead of changing one that others have.
#
# Usage:     findings/mosquitto-dynsec-role-change.sh           (needs mosquitto with its plugin; Debian: apt-get install mosquitto)
set -euo pipefail
PATH=$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin
command -v mosquitto >/dev/null || { echo "needs mosquitto (Debian: apt-get install mosquitto)" >&2; exit 2; }
plugin=$(find /usr/lib /usr/local/lib /opt/homebrew/lib -name mosquitto_dynamic_security.so 2>/dev/null | head -1) || true
test -n "$plugin" || { echo "needs mosquitto's dynamic-security plugin" >&2; exit 2; }

folder=$(mktemp -d)
broker=
trap 'test -z "$broker" || kill "$broker"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq paho-mqtt==2.2.0

cat >configure.py <<'PYTHON'
import base64
import hashlib
import json

SALT = b"twelve bytes"


def client(user: str, role: str) -> dict:
    digest = hashlib.pbkdf2_hmac("sha512", user.encode(), SALT, 101, 64)
    secret = {"password": base64.b64encode(digest).decode(), "salt": base64.b64encode(SALT).decode(), "iterations": 101}
    return {"username": user, **secret, "roles": [{"rolename": role}]}


def role(name: str, *acls: tuple[str, str]) -> dict:
    return {"rolename": name, "acls": [{"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind, topic in acls]}


control = "$CONTROL/dynamic-security/#"
print(
    json.dumps(
        {
            "defaultACLAccess": {"publishClientSend": False, "publishClientReceive": True, "subscribe": False, "unsubscribe": True},
            "groups": [],
            "clients": [client(user, user.partition("-")[0]) for user in ("reader-1", "reader-2", "other", "admin")],
            "roles": [
                role("reader", ("subscribePattern", "news/#")),
                role("other", ("subscribePattern", "news/#")),
                role("admin", ("publishClientSend", control), ("publishClientReceive", control), ("subscribePattern", control)),
            ],
        }
    )
)
PYTHON
environment/bin/python configure.py >clients.json

port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf '%s\n' "listener $port 127.0.0.1" "allow_anonymous false" "log_type none" "plugin $plugin" \
  "plugin_opt_config_file $folder/clients.json" >mosquitto.conf
test "$(id -u)" != 0 || echo "user root" >>mosquitto.conf
mosquitto -c mosquitto.conf 2>/dev/null & broker=$!

cat >change.py <<'PYTHON'
import json
import queue
import socket
import sys
import time

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

PORT = int(sys.argv[1])
for _ in range(200):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            break
    time.sleep(0.05)

ended, answered = {}, queue.Queue()


def connected(user: str) -> Client:
    up = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2, client_id=user, protocol=MQTTv5, reconnect_on_failure=False)
    client.username_pw_set(user, user)
    client.on_connect = lambda *_: up.put(None)
    client.on_disconnect = lambda _client, _data, _flags, code, _properties: ended.setdefault(user, code.value)
    client.on_message = lambda _client, _data, message: answered.put(json.loads(message.payload))
    client.connect("127.0.0.1", PORT)
    client.loop_start()
    up.get(timeout=10)
    return client


clients = [connected(user) for user in ("reader-1", "reader-2", "other")]
admin = connected("admin")
admin.subscribe("$CONTROL/dynamic-security/v1/response", 1)
added = {"command": "addRoleACL", "rolename": "reader", "acltype": "subscribePattern", "topic": "more/#", "allow": True}
admin.publish("$CONTROL/dynamic-security/v1", json.dumps({"commands": [added]}), qos=1)
answer = answered.get(timeout=10)
assert answer == {"responses": [{"command": "addRoleACL"}]}, answer
for _ in range(100):
    if len(ended) >= 2:
        break
    time.sleep(0.1)
time.sleep(0.5)  # for the third one
for user in ("reader-1", "reader-2", "other"):
    print(f"{user}: " + (f"disconnected, {ended[user]:#x}" if user in ended else "connected"))
for client in (*clients, admin):
    client.disconnect()
    client.loop_stop()
PYTHON

expected='reader-1: disconnected, 0x98
reader-2: disconnected, 0x98
other: connected'
output=$(environment/bin/python change.py "$port" 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
