#!/usr/bin/env bash
# msgspec encodes a datetime whose UTC offset has seconds without those seconds: the decoded value is another instant.
#
# Versions:  msgspec 0.22.0, with the time zones of tzdata 2025.2.
# Input:     midday on 1 January 1970 in Monrovia, Liberia, whose offset was -00:44:30 until 1972, as `zoneinfo` gives it; and a
#            datetime and a time with an offset of +01:00:30, which Python allows since 3.7.
# Behaviour: RFC 3339 has no seconds in an offset. msgspec rounds the offset to whole minutes and leaves the local time as it
#            is, without an error, so what it decodes is up to 30 seconds away from what it encoded.
# Output:    1970-01-01T12:00:00-00:44:30 -> "1970-01-01T12:00:00-00:44" -> equal: False
#            2026-01-01T12:00:00+01:00:30 -> "2026-01-01T12:00:00+01:00" -> equal: False
#            12:00:00+01:00:30 -> "12:00:00+01:00" -> equal: False
# Remedy:    convert to UTC before encoding, or refuse an offset that is not of whole minutes.
#
# Usage:     findings/msgspec-utc-offset-seconds.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq msgspec==0.22.0 tzdata==2025.2 2>/dev/null

PYTHONTZPATH="" environment/bin/python - <<'PYTHON'
import sys
from datetime import datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import msgspec

half_a_minute = timezone(timedelta(hours=1, seconds=30))
equal = []
for value in (
    datetime(1970, 1, 1, 12, tzinfo=ZoneInfo("Africa/Monrovia")),
    datetime(2026, 1, 1, 12, tzinfo=half_a_minute),
    time(12, tzinfo=half_a_minute),
):
    text = msgspec.json.encode(value)
    equal.append(msgspec.json.decode(text, type=type(value)) == value)
    print(f"{value.isoformat()} -> {text.decode()} -> equal: {equal[-1]}")
if any(equal):
    print("CHANGED: msgspec no longer drops the seconds of a UTC offset without an error")
    sys.exit(1)
PYTHON
