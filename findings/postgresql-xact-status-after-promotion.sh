#!/usr/bin/env bash
# After a standby was promoted, PostgreSQL's pg_xact_status says "committed" of a transaction that it does not have.
#
# Versions:  PostgreSQL 15 (Debian 12: 15.18), with its own client programs.
# Input:     a client asks for the id of its transaction (pg_current_xact_id), inserts a row, and commits. The primary is lost before its
#            standby has received that. The standby is promoted, and other clients commit there.
# Behaviour: the new primary gives the same ids out again. The documentation names pg_xact_status for a client that was disconnected in its COMMIT; asked
#            for the id, the new primary answers "committed": that of another transaction. The row is not there.
# Output:    the transaction NNN on the old primary: committed
#            the transaction NNN on the new primary: committed
#            its rows there: 0
# Remedy:    let the transaction write a row with a unique id, and look for that.
#
# Usage:     findings/postgresql-xact-status-after-promotion.sh     (needs PostgreSQL; Debian: apt-get install postgresql)
set -euo pipefail
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin | tr ' ' :)
command -v initdb >/dev/null || { echo "needs PostgreSQL (Debian: apt-get install postgresql)" >&2; exit 2; }

folder=$(mktemp -d)
run=()
if [ "$(id -u)" = 0 ]; then
  chown postgres "$folder"
  run=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
cd "$folder"
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
stop() { "${run[@]}" pg_ctl -D "$folder/$1" -m immediate stop >/dev/null 2>&1 || true; }
trap 'stop primary; stop standby; rm -rf "$folder"' EXIT
start() { "${run[@]}" pg_ctl -D "$folder/$1" -w -l "$folder/$1.log" -o "-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder" start >/dev/null; }
ask() { psql -X -q -A -t -h 127.0.0.1 -p "$1" -U tester -d postgres -c "$2"; }

"${run[@]}" initdb -D "$folder/primary" -U tester -A trust --no-locale -E UTF8 >/dev/null
primary=$(free_port)
start primary "$primary"
ask "$primary" "CREATE TABLE notes (id INTEGER)"
"${run[@]}" pg_basebackup -D "$folder/standby" -h 127.0.0.1 -p "$primary" -U tester -R -c fast

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
