#!/usr/bin/env bash
# mosquitto tells a publisher "success" for a message that it drops, because it is larger than its only subscriber takes.
#
# Versions:  mosquitto 2.0 (Debian 12: 2.0.11), with paho-mqtt 2.2.0 as the client.
# Input:     a subscriber that announced a Maximum Packet Size of 1,000 in its CONNECT; messages of 10 and of 5,000 bytes with QoS 1 on
#            its topic; and one on a topic without any subscriber, to compare.
# Behaviour: MQTT 5 (3.1.2.11.4) has the broker drop the message as if it had been delivered, so nothing is wrong. But the PUBACK is 0x00,
#            as for a message that arrives; 0x10 (No matching subscribers) comes only if no subscription matches at all.
# Output:    nobody subscribes: PUBACK 0x10
#            10 bytes: PUBACK 0x0, received
#            5000 bytes: PUBACK 0x0, not received
# Remedy:    do not take PUBACK 0x00 as proof that a subscriber exists that can take the message. Announce no Maximum Packet Size below the
#            broker's own limit.
#
# Usage:     findings/mosquitto-larger-than-the-subscriber-takes.sh           (needs mosquitto; Debian: apt-get install mosquitto)
set -euo pipefail
PATH=$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin
command -v mosquitto >/dev/null || { echo "needs mosquitto (Debian: apt-get install mosquitto)" >&2; exit 2; }

folder=$(mktemp -d)
broker=
trap 'test -z "$broker" || kill "$broker"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq paho-mqtt==2.2.0

port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf '%s\n' "listener $port 127.0.0.1" "allow_anonymous true" "log_type none" >mosquitto.conf
test "$(id -u)" != 0 || echo "user root" >>mosquitto.conf
mosquitto -c mosquitto.conf 2>/dev/null & broker=$!

cat >publish.py <<'PYTHON'
import queue
import socket
import sys
import time

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PORT = int(sys.argv[1])
for _ in range(200):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            break
    time.sleep(0.05)

subscribed, received, acknowledged = queue.Queue(), queue.Queue(), queue.Queue()
small = Properties(PacketTypes.CONNECT)
small.MaximumPacketSize = 1000
subscriber = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
subscriber.on_connect = lambda *_: subscriber.subscribe("topic", 1)
subscriber.on_subscribe = lambda *_: subscribed.put(None)
subscriber.on_message = lambda _client, _data, message: received.put(len(message.payload))
subscriber.connect("127.0.0.1", PORT, properties=small)
subscriber.loop_start()
subscribed.get(timeout=10)

publisher = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
publisher.on_connect = lambda *_: subscribed.put(None)
publisher.on_publish = lambda _client, _data, _mid, code, _properties: acknowledged.put(code.value)
publisher.connect("127.0.0.1", PORT)
publisher.loop_start()
subscribed.get(timeout=10)
publisher.publish("nobody", b"x", qos=1)
print(f"nobody subscribes: PUBACK {acknowledged.get(timeout=10):#x}")
for size in (10, 5000):
    publisher.publish("topic", b"x" * size, qos=1)
    code = acknowledged.get(timeout=10)
    publisher.publish("topic", b"mark", qos=1)  # arrives after it, if it arrives
    acknowledged.get(timeout=10)
    first = received.get(timeout=10)
    if first == size:
        received.get(timeout=10)
    print(f"{size} bytes: PUBACK {code:#x}, {'received' if first == size else 'not received'}")
for client in (publisher, subscriber):
    client.disconnect()
    client.loop_stop()
PYTHON

expected='nobody subscribes: PUBACK 0x10
10 bytes: PUBACK 0x0, received
5000 bytes: PUBACK 0x0, not received'
output=$(environment/bin/python publish.py "$port" 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
