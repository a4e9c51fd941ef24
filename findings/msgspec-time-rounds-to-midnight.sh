#!/usr/bin/env bash
# msgspec rounds the last instant of a day to the first instant of the same day, when it decodes a time with more than six digits.
#
# Versions:  msgspec 0.22.0.
# Input:     times and datetimes with seven digits of a second, which RFC 3339 allows and .NET, for example, writes.
# Behaviour: more than six digits are rounded, not cut off. A datetime carries into the next day. A time has no day to carry into,
#            so 23:59:59.9999999 becomes 00:00:00: almost 24 hours earlier, without an error.
# Output:    time 12:00:00.9999999 -> 12:00:01
#            time 23:59:59.9999999 -> 00:00:00
#            datetime 2026-01-31T23:59:59.9999999Z -> 2026-02-01T00:00:00+00:00
# Remedy:    send at most six digits, or treat midnight as a value that may be the end of the day.
#
# Usage:     findings/msgspec-time-rounds-to-midnight.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq msgspec==0.22.0 2>/dev/null

cat >decode.py <<'PYTHON'
from datetime import datetime, time

import msgspec

for cls, text in ((time, "12:00:00.9999999"), (time, "23:59:59.9999999"), (datetime, "2026-01-31T23:59:59.9999999Z")):
    print(f"{cls.__name__} {text} -> {msgspec.json.decode(msgspec.json.encode(text), type=cls).isoformat()}")
PYTHON

expected='time 12:00:00.9999999 -> 12:00:01
time 23:59:59.9999999 -> 00:00:00
datetime 2026-01-31T23:59:59.9999999Z -> 2026-02-01T00:00:00+00:00'
output=$(environment/bin/python decode.py 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
