#!/usr/bin/env bash
# A client that is still sending its body when granian's application answers gets a connection error in place of the answer.
#
# Versions:  granian 2.8.9, httpx 0.28.1.
# Input:     an ASGI application answers 401 without reading the body. httpx.AsyncClient sends a body of 5 MB as a stream, ten times.
# Behaviour: when the application returns, granian closes the connection with unread data behind it, so the kernel resets it
#            (RFC 9112, section 9.6, warns of this). The answer was sent, but httpx.AsyncClient raises ReadError, and Node's fetch
#            EPIPE; httpx.Client still finds the answer. If the application goes on receiving, and dropping, the body after it has
#            sent the answer, every client sees 401 each time.
# Output:    answer and return: 401 at most 3 of 10 times
#            answer, then receive the rest: 401 10 of 10 times
# Remedy:    receive the rest of the body after an early answer, within limits of size and time.
#
# Usage:     findings/granian-early-answer.sh
set -euo pipefail
folder=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq granian==2.8.9 httpx==0.28.1

cat >application.py <<'PYTHON'
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
    while scope["path"] == "/drain" and (await receive()).get("more_body"):
        pass
PYTHON
cat >client.py <<'PYTHON'
import asyncio
import socket
import sys
import time

import httpx

PORT = int(sys.argv[1])


async def body():
    for _ in range(80):
        yield bytes(65_536)


async def answered(path: str) -> int:
    count = 0
    async with httpx.AsyncClient() as client:
        for _ in range(10):
            try:
                count += (await client.post(f"http://127.0.0.1:{PORT}{path}", content=body())).status_code == 401
            except httpx.TransportError:
                pass
    return count


for _ in range(200):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            break
    time.sleep(0.05)
returned, drained = asyncio.run(answered("/")), asyncio.run(answered("/drain"))
print(f"answer and return: 401 {'at most 3' if returned <= 3 else returned} of 10 times")
print(f"answer, then receive the rest: 401 {drained} of 10 times")
if returned > 3 or drained < 10:
    print("CHANGED: an early answer of granian reaches the client, or draining no longer helps")
    sys.exit(1)
PYTHON
port=$(environment/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
environment/bin/granian --interface asginl --port "$port" --no-log application:app & server=$!
environment/bin/python client.py "$port"
