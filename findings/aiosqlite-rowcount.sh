#!/usr/bin/env bash
# aiosqlite's `cursor.rowcount` is 0 after `UPDATE … RETURNING` and -1 after `WITH … UPDATE`, although rows were changed.
#
# Versions:  aiosqlite 0.22.1, with the sqlite3 module of Python 3.11.7 and 3.13.0, and SQLite 3.40.1.
# Input:     a table of three rows, and three statements that each change all of them.
# Behaviour: PEP 249 defines `rowcount` as the number of rows that the last execute() affected. sqlite3, from which aiosqlite takes
#            it, counts only when the statement has ended, which with RETURNING is after its last row, and only if its first word
#            is INSERT, UPDATE, DELETE, or REPLACE. So `if cursor.rowcount == 0: raise Conflict()` refuses a compare-and-set
#            with RETURNING that was successful.
# Output:    UPDATE: rowcount 3 after execute(), 3 after fetchall()
#            UPDATE … RETURNING: rowcount 0 after execute(), 3 after fetchall()
#            WITH … UPDATE: rowcount -1 after execute(), -1 after fetchall()
# Remedy:    fetch all rows before reading `rowcount`, and use `SELECT changes()` after WITH.
#
# Usage:     findings/aiosqlite-rowcount.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq aiosqlite==0.22.1 2>/dev/null

environment/bin/python - <<'PYTHON'
import asyncio
import sys

import aiosqlite

STATEMENTS = {
    "UPDATE": ("UPDATE words SET length = 1", (3, 3)),
    "UPDATE … RETURNING": ("UPDATE words SET length = 2 RETURNING word", (0, 3)),
    "WITH … UPDATE": ("WITH chosen (n) AS (VALUES (3)) UPDATE words SET length = (SELECT n FROM chosen)", (-1, -1)),
}


async def main() -> bool:
    as_described = True
    async with aiosqlite.connect(":memory:", isolation_level=None) as database:
        await database.execute("CREATE TABLE words (word TEXT, length INTEGER)")
        await database.execute("INSERT INTO words VALUES ('a', 0), ('b', 0), ('c', 0)")
        for name, (sql, described) in STATEMENTS.items():
            cursor = await database.execute(sql)
            first = cursor.rowcount
            await cursor.fetchall()
            print(f"{name}: rowcount {first} after execute(), {cursor.rowcount} after fetchall()")
            as_described = as_described and (first, cursor.rowcount) == described
    return as_described


if not asyncio.run(main()):
    print("CHANGED: rowcount no longer hides the rows that RETURNING and WITH change")
    sys.exit(1)
PYTHON
