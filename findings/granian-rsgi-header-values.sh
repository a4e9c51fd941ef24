#!/usr/bin/env bash
# An application on granian's RSGI interface does not see header values that are not ASCII, nor the path as it came.
#
# Versions:  granian 2.8.9.
# Input:     GET /a%2Fb with the field `X-Name: caf` and the byte E9. RFC 9110 allows that byte in a value (section 5.5, obs-text), and an
#            encoded slash is not a separator (RFC 3986, section 2.2). The same application answers over RSGI and over ASGI.
# Behaviour: RSGI's scope has no `x-name`, as if the client had not sent it, and `path` is /a/b: which of the slashes was encoded cannot
#            be known any more. Over ASGI, `headers` and `raw_path` are what the client sent.
# Output:    rsgi: x-name missing, path /a/b
#            asgi: x-name b'caf\xe9', path /a%2Fb
# Remedy:    ASGI, where the difference between "no token" and "a token that cannot be one", or an encoded slash in an id, matters.
#
# Usage:     findings/granian-rsgi-header-values.sh
set -euo pipefail
folder=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq granian==2.8.9

cat >application.py <<'PYTHON'
class App:
    async def __rsgi__(self, scope, protocol):
        found = dict(scope.headers.items()).get("x-name")
        protocol.response_str(200, [], f"x-name {'missing' if found is None else repr(found)}, path {scope.path}")

    async def __call__(self, scope, receive, send):
        found = dict(scope["headers"]).get(b"x-name")
        body = f"x-name {'missing' if found is None else repr(found)}, path {scope['raw_path'].decode()}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


app = App()
PYTHON
cat >client.py <<'PYTHON'
import socket
import sys
import time

for _ in range(200):
    try:
        connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        break
    except OSError:
        time.sleep(0.05)
connection.sendall(b"GET /a%2Fb HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\nX-Name: caf\xe9\r\n\r\n")
answer = b""
while part := connection.recv(65_536):
    answer += part
print(answer.partition(b"\r\n\r\n")[2].decode())
PYTHON

found=
for interface in rsgi asginl; do
  port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  environment/bin/granian --interface "$interface" --port "$port" --no-log application:app & server=$!
  line="${interface%nl}: $(environment/bin/python client.py "$port")"
  echo "$line"
  found="$found$line|"
  kill "$server"
  wait "$server" || true
  server=
done
if [[ $found != "rsgi: x-name missing, path /a/b|asgi: x-name b'caf\\xe9', path /a%2Fb|" ]]; then
  echo "CHANGED: RSGI now passes on what the client has sent, or ASGI no longer does"
  exit 1
fi
