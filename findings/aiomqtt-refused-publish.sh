#!/usr/bin/env bash
# aiomqtt's `await client.publish(…, qos=1)` returns without an error if the broker refuses the message.
#
# Versions:  aiomqtt 2.5.1 on paho-mqtt 2.2.0, with mosquitto 2.0 (Debian 12: 2.0.11) as the broker.
# Input:     a connected MQTT 5 client publishes with QoS 1 to a topic that the broker's access list does not let it write.
# Behaviour: mosquitto answers PUBACK with reason code 0x87 (Not authorized). paho-mqtt hands the code to its on_publish
#            callback. aiomqtt takes the PUBACK as success, whatever its code: `publish` returns None.
# Output:    paho-mqtt: PUBACK 0x87 Not authorized
#            aiomqtt: publish returned None
# Remedy:    do not take the return of `publish` as proof that the broker accepted the message.
#
# Usage:     findings/aiomqtt-refused-publish.sh           (needs mosquitto; Debian: apt-get install mosquitto)
set -euo pipefail
PATH=$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin
command -v mosquitto >/dev/null || { echo "needs mosquitto (Debian: apt-get install mosquitto)" >&2; exit 2; }

folder=$(mktemp -d)
broker=
trap 'test -z "$broker" || kill "$broker"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq aiomqtt==2.5.1 paho-mqtt==2.2.0

port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo "topic write public/#" >access
printf '%s\n' "listener $port 127.0.0.1" "allow_anonymous true" "acl_file $folder/access" "log_type none" >mosquitto.conf
test "$(id -u)" != 0 || echo "user root" >>mosquitto.conf
mosquitto -c mosquitto.conf 2>/dev/null & broker=$!

cat >publish.py <<'PYTHON'
import asyncio
import socket
import sys
import threading
import time

import aiomqtt
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

PORT = int(sys.argv[1])
TOPIC = "private/topic"


def wait_for_the_broker() -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the broker did not start")


def with_paho() -> str:
    answered = threading.Event()
    codes = []
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.on_connect = lambda *_: client.publish(TOPIC, b"hello", qos=1)
    client.on_publish = lambda _client, _data, _mid, code, _properties: (codes.append(code), answered.set())
    client.connect("127.0.0.1", PORT)
    client.loop_start()
    answered.wait(10)
    client.disconnect()
    client.loop_stop()
    return " ".join(f"{code.value:#x} {code}" for code in codes)


async def with_aiomqtt() -> object:
    async with aiomqtt.Client("127.0.0.1", PORT, protocol=aiomqtt.ProtocolVersion.V5) as client:
        return await client.publish(TOPIC, b"hello", qos=1)


wait_for_the_broker()
print(f"paho-mqtt: PUBACK {with_paho()}")
print(f"aiomqtt: publish returned {asyncio.run(with_aiomqtt())}")
PYTHON

expected='paho-mqtt: PUBACK 0x87 Not authorized
aiomqtt: publish returned None'
output=$(environment/bin/python publish.py "$port" 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
