#!/usr/bin/env bash
# httpx-sse yields an event without data for each comment that an empty line follows, once the stream has had an id.
#
# Versions:  httpx-sse 0.4.3 on httpx 0.28.1.
# Input:     a stream with one event that has an id, and three comments `:` with an empty line, which many servers send so that
#            proxies keep the connection open.
# Behaviour: by the HTML standard (section 9.2.6), an empty line dispatches nothing if there was no data. httpx-sse keeps the
#            last id for the next event, as it has to, but takes a block with a known id for an event: type "message", no data.
#            `event.json()` raises on it. Before the first id, and without the empty line, the comments are ignored.
# Output:    comments with an empty line, no id: 1 event, 0 of them empty
#            comments with an empty line, an id:  4 events, 3 of them empty
#            comments alone, an id:               1 event, 0 of them empty
# Remedy:    a server sends heartbeats as `:` and one line end. A client skips events without data.
#
# Usage:     findings/httpx-sse-empty-events.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq httpx==0.28.1 httpx-sse==0.4.3

environment/bin/python - <<'PYTHON'
import sys

import httpx
from httpx_sse import EventSource


def events(text: str) -> list[str]:
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=text.encode())
    return [event.data for event in EventSource(response).iter_sse()]


found = []
for name, text in (
    ("comments with an empty line, no id:", 'data: {"n":1}\n\n' + ":\n\n" * 3),
    ("comments with an empty line, an id: ", 'id: 1\ndata: {"n":1}\n\n' + ":\n\n" * 3),
    ("comments alone, an id:              ", 'id: 1\ndata: {"n":1}\n\n' + ":\n" * 3),
):
    data = events(text)
    found.append((len(data), data.count("")))
    print(f"{name} {len(data)} event{'s' if len(data) > 1 else ''}, {data.count('')} of them empty")
if found != [(1, 0), (4, 3), (1, 0)]:
    print("CHANGED: httpx-sse no longer takes a comment for an event, or does so elsewhere, too")
    sys.exit(1)
PYTHON
