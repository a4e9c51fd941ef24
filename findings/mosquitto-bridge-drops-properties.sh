#!/usr/bin/env bash
# A mosquitto bridge drops every MQTT 5 property, unless `bridge_protocol_version mqttv50` is set: it speaks 3.1.1 by default.
#
# Versions:  mosquitto 2.0 (Debian 12: 2.0.11), with paho-mqtt 2.2.0 as the client.
# Input:     two brokers with a bridge between them (`topic request out 1`), and a message with Response Topic, Correlation Data, and a User
#            Property, published on one and received on the other; once without and once with `bridge_protocol_version mqttv50`.
# Behaviour: both brokers and both clients speak MQTT 5, and the bridge as it comes 3.1.1, which has no properties. The message arrives without
#            them, and nothing in a log says so. A responder cannot answer, and a request through the bridge times out.
# Output:    default: request {}
#            mqttv50: request {'ResponseTopic': 'answers', 'CorrelationData': '01', 'UserProperty': [('name', 'value')]}
# Remedy:    set `bridge_protocol_version mqttv50` at the bridge.
#
# Usage:     findings/mosquitto-bridge-drops-properties.sh           (needs mosquitto; Debian: apt-get install mosquitto)
set -euo pipefail
PATH=$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin
command -v mosquitto >/dev/null || { echo "needs mosquitto (Debian: apt-get install mosquitto)" >&2; exit 2; }

folder=$(mktemp -d)
brokers=
trap 'for broker in $brokers; do kill "$broker"; done; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq paho-mqtt==2.2.0

ports=$(environment/bin/python -c '
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in free))')
read -r far default mqttv50 <<<"$ports"
start() {  # start PORT LINE…
  local port=$1; shift
  printf '%s\n' "listener $port 127.0.0.1" "allow_anonymous true" "log_type none" "$@" >"$port.conf"
  test "$(id -u)" != 0 || sed -i '1i user root' "$port.conf"
  mosquitto -c "$port.conf" 2>/dev/null & brokers="$brokers $!"
}
start "$far"
start "$default" "connection one" "address 127.0.0.1:$far" "topic request out 1"
start "$mqttv50" "connection two" "address 127.0.0.1:$far" "topic request out 1" "bridge_protocol_version mqttv50"

cat >publish.py <<'PYTHON'
import queue
import socket
import sys
import time

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

FAR, DEFAULT, MQTTV50 = (int(port) for port in sys.argv[1:])
received, subscribed = queue.Queue(), queue.Queue()


def connected(port: int) -> Client:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.on_message = lambda _client, _data, message: received.put(message)
    client.on_subscribe = lambda *_: subscribed.put(None)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


receiver = connected(FAR)
receiver.subscribe("request", 1)
subscribed.get(timeout=10)
properties = Properties(PacketTypes.PUBLISH)
properties.ResponseTopic, properties.CorrelationData, properties.UserProperty = "answers", b"\x01", ("name", "value")
for name, port in (("default", DEFAULT), ("mqttv50", MQTTV50)):
    sender = connected(port)
    for _ in range(60):  # until the bridge has connected
        sender.publish("request", b"?", qos=1, properties=properties)
        try:
            message = received.get(timeout=0.5)
            break
        except queue.Empty:
            continue
    print(f"{name}: {message.topic} {message.properties.json()}")
    sender.disconnect()
    sender.loop_stop()
    time.sleep(0.5)
    while not received.empty():
        received.get()
receiver.disconnect()
receiver.loop_stop()
PYTHON

expected="default: request {}
mqttv50: request {'ResponseTopic': 'answers', 'CorrelationData': '01', 'UserProperty': [('name', 'value')]}"
output=$(environment/bin/python publish.py "$far" "$default" "$mqttv50" 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
