#!/usr/bin/env bash
# gmqtt, told to use MQTT 5, goes on with 3.1.1 if the broker does not take it, and then drops the properties of what it publishes.
#
# Versions:  gmqtt 0.8.0, with amqtt 0.12.1, which speaks 3.1.1 only, as the broker.
# Input:     `connect(…, version=MQTTv50)`, and a message to the client itself with a Response Topic and a User Property.
# Behaviour: the broker answers CONNECT with a CONNACK of 3.1.1, code 1 (unacceptable protocol version). gmqtt connects again with 3.1.1. `connect`
#            returns without an error, and `publish` takes properties that cannot be sent. Nothing public says which version is in use.
# Output:    connect returned None, connected: True
#            received b'?' with response_topic None, user_property None
# Remedy:    look at `client._connection_state.protocol_version` after `connect`.
#
# Usage:     findings/gmqtt-falls-back-to-3.1.1.sh
set -euo pipefail

folder=$(mktemp -d)
broker=
trap 'test -z "$broker" || kill "$broker"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq gmqtt==0.8.0 amqtt==0.12.1

port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >broker.py <<'PYTHON'
import asyncio
import sys

from amqtt.broker import Broker


async def main() -> None:
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}}
    await Broker({"listeners": listeners, "plugins": plugins}).start()
    await asyncio.Event().wait()


asyncio.run(main())
PYTHON
environment/bin/python broker.py "$port" 2>/dev/null & broker=$!

cat >publish.py <<'PYTHON'
import asyncio
import logging
import socket
import sys
import time

import gmqtt
from gmqtt.mqtt.constants import MQTTv50

PORT = int(sys.argv[1])
for _ in range(400):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            break
    time.sleep(0.05)
logging.disable(logging.CRITICAL)


async def main() -> None:
    received, subscribed = asyncio.Queue(), asyncio.Event()
    client = gmqtt.Client("client")

    def on_message(_client, _topic, payload, _qos, properties):
        received.put_nowait((payload, properties))
        return 0

    client.on_message = on_message
    client.on_subscribe = lambda *_: subscribed.set()
    returned = await client.connect("127.0.0.1", PORT, version=MQTTv50)
    print(f"connect returned {returned}, connected: {client.is_connected}")
    client.subscribe("topic", qos=1)
    await asyncio.wait_for(subscribed.wait(), 20)
    client.publish("topic", b"?", qos=1, response_topic="answers", user_property=("name", "value"))
    payload, properties = await asyncio.wait_for(received.get(), 20)
    print(f"received {payload!r} with " + ", ".join(f"{name} {properties.get(name)}" for name in ("response_topic", "user_property")))


asyncio.run(asyncio.wait_for(main(), 40))
PYTHON

expected="connect returned None, connected: True
received b'?' with response_topic None, user_property None"
output=$(environment/bin/python publish.py "$port" 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
