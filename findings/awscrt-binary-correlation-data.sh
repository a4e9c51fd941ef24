#!/usr/bin/env bash
# awscrt hands received Correlation Data over as text, and as None if its bytes are not UTF-8, although MQTT 5 defines it as binary.
#
# Versions:  awscrt 0.38.1, with mosquitto 2.0 (Debian 12: 2.0.11) as the broker.
# Input:     a connected client publishes to a topic that it subscribes to, with Correlation Data b"abc", and with the 16 bytes of a UUID that
#            are not UTF-8.
# Behaviour: bytes can be sent (`correlation_data=b"…"`), and the broker forwards them unchanged. The received packet has a str if they are UTF-8,
#            and None otherwise, as if the message had none: answers cannot be told apart.
# Output:    sent b'abc', received 'abc'
#            sent b'\xf8\x1dO\xae}\xec\x11\xd0\xa7e\x00\xa0\xc9\x1ek\xf6', received None
# Remedy:    use text as Correlation Data with awscrt, such as `uuid4().hex`.
#
# Usage:     findings/awscrt-binary-correlation-data.sh           (needs mosquitto; Debian: apt-get install mosquitto)
set -euo pipefail
PATH=$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin
command -v mosquitto >/dev/null || { echo "needs mosquitto (Debian: apt-get install mosquitto)" >&2; exit 2; }

folder=$(mktemp -d)
broker=
trap 'test -z "$broker" || kill "$broker"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq awscrt==0.38.1

port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf '%s\n' "listener $port 127.0.0.1" "allow_anonymous true" "log_type none" >mosquitto.conf
test "$(id -u)" != 0 || echo "user root" >>mosquitto.conf
mosquitto -c mosquitto.conf 2>/dev/null & broker=$!

cat >publish.py <<'PYTHON'
import queue
import socket
import sys
import time
import uuid
from threading import Event

from awscrt import mqtt5

PORT = int(sys.argv[1])
for _ in range(200):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            break
    time.sleep(0.05)

received, connected = queue.Queue(), Event()
client = mqtt5.Client(
    mqtt5.ClientOptions(
        host_name="127.0.0.1",
        port=PORT,
        on_publish_callback_fn=lambda data: received.put(data.publish_packet.correlation_data),
        on_lifecycle_event_connection_success_fn=lambda _: connected.set(),
    )
)
client.start()
connected.wait(10)
client.subscribe(mqtt5.SubscribePacket([mqtt5.Subscription("topic", mqtt5.QoS.AT_LEAST_ONCE)])).result(10)
for sent in (b"abc", uuid.UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6").bytes):
    packet = mqtt5.PublishPacket(topic="topic", payload=b"?", qos=mqtt5.QoS.AT_LEAST_ONCE, correlation_data=sent)
    client.publish(packet).result(10)
    print(f"sent {sent!r}, received {received.get(timeout=10)!r}")
client.stop()
PYTHON

expected="sent b'abc', received 'abc'
sent b'\\xf8\\x1dO\\xae}\\xec\\x11\\xd0\\xa7e\\x00\\xa0\\xc9\\x1ek\\xf6', received None"
output=$(environment/bin/python publish.py "$port" 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
