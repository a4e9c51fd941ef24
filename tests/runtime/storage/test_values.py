"""Values in SQL: each is equal when it comes back, or it is refused by the number of its parameter."""

import asyncio
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Random, StatementError, Struct, UsageError
from runtime.clock import Clock, ManualClock, rfc3339
from runtime.storage import UnstorableValue
from runtime.storage.sqlite import SqliteDatabase


class Colour(Enum):
    RED = "red"
    NULL = "null"


class Level(IntEnum):
    LOW = 1
    HIGH = 2**40


class Stored(Struct, rename="camel"):
    """One field of each type that can be stored, once required and once optional."""

    a_text: str
    a_number: int
    a_float: float
    a_bool: bool
    some_bytes: bytes
    an_amount: Decimal
    a_moment: datetime
    a_day: date
    a_time: time
    a_duration: timedelta
    an_id: UUID
    a_colour: Colour
    a_level: Level
    text: str | None
    number: int | None
    truth: bool | None
    amount: Decimal | None
    moment: datetime | None
    colour: Colour | None


ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TEXT = st.text() | st.sampled_from(("null", "1", "true", "1.10", "2026-01-01", "a\0b", "$1", "'"))
INTEGERS = st.integers(-(2**63), 2**63 - 1)
AMOUNTS = st.decimals(allow_nan=False)
MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=ZONES)  # noqa: DTZ001
VALUES = st.builds(
    Stored, TEXT, INTEGERS, st.floats(allow_nan=False), st.booleans(), st.binary(), AMOUNTS, MOMENTS, st.dates(),
    st.times() | st.times(timezones=ZONES), st.timedeltas(), st.uuids(),
    st.sampled_from(Colour), st.sampled_from(Level), st.none() | TEXT, st.none() | INTEGERS, st.none() | st.booleans(),
    st.none() | AMOUNTS, st.none() | MOMENTS, st.none() | st.sampled_from(Colour),
)  # fmt: skip
COLUMNS = (
    "a_text TEXT, a_number BIGINT, a_float DOUBLE PRECISION, a_bool BOOLEAN, some_bytes BLOB, an_amount TEXT, a_moment TEXT, a_day TEXT, "
    "a_time TEXT, a_duration TEXT, an_id TEXT, a_colour TEXT, a_level BIGINT, text TEXT, number BIGINT, truth BOOLEAN, amount TEXT, "
    "moment TEXT, colour TEXT"
)


NAMES = Stored.__struct_fields__
MARKS = [f"${number}" for number in range(1, len(NAMES) + 1)]
INSERT = f"INSERT INTO stored ({', '.join(NAMES)}) VALUES ({', '.join(MARKS)})"
ECHO = f"SELECT {', '.join(f'{mark} AS {name}' for mark, name in zip(MARKS, NAMES, strict=True))}"


async def store_and_read(database: SqliteDatabase, values: list[Stored]) -> None:
    async with database.transaction() as tx:
        await tx.execute("DELETE FROM stored")
        for value in values:
            parameters = [getattr(value, name) for name in NAMES]
            await tx.execute(INSERT, *parameters)
            assert await tx.fetch_one(ECHO, *parameters, into=Stored) == value
        assert await tx.fetch("SELECT * FROM stored ORDER BY position", into=Stored) == values
    assert await database.fetch("SELECT * FROM stored ORDER BY position", into=Stored) == values


def test_values_come_back_equal(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "x.sqlite", durable=False)
    with asyncio.Runner() as runner:
        runner.run(database.open())
        try:
            runner.run(database.execute(f"CREATE TABLE stored (position INTEGER PRIMARY KEY, {COLUMNS})"))

            @settings(max_examples=30)
            @given(st.lists(VALUES, min_size=1, max_size=4))
            def check(values: list[Stored]) -> None:
                runner.run(store_and_read(database, values))

            check()
        finally:
            runner.run(database.close())


NAIVE = datetime(2026, 11, 29, 8, 0)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**63, r"\$2: an integer of 65 bits: expected one of at most 64"),
        (-(2**63) - 1, r"\$2: an integer of 65 bits"),
        (10**400, r"\$2: an integer of 1330 bits"),
        (NAIVE, r"\$2: a datetime that cannot be stored: it has no timezone: expected an aware datetime, such as clock\.now\(\)"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), r"\$2: a datetime that cannot be stored: "),
        (time(8, tzinfo=timezone(timedelta(seconds=30))), r"\$2: a time that cannot be stored: its UTC offset"),
        (math.nan, r"\$2: a float that cannot be stored: SQLite would store NULL"),
        (Decimal("NaN"), r"\$2: a Decimal that cannot be stored: NaN"),
        ("\ud800", r"\$2: no UTF-8 text: surrogates not allowed \(character 0\)"),
    ],
)
async def test_a_value_that_cannot_be_stored_is_refused_by_its_number(
    database: SqliteDatabase, value: object, reason: str
) -> None:
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO notes (text) VALUES ('before')")
        with pytest.raises(UnstorableValue, match=reason):
            await tx.execute("INSERT INTO notes (id, text) VALUES ($1, $2)", 2, value)
    with pytest.raises(UnstorableValue, match=reason):
        await database.fetch("SELECT $1, $2", 1, value)
    assert await database.fetch("SELECT text FROM notes") == [{"text": "before"}], "the transaction continued"


async def test_a_type_that_cannot_be_stored_is_refused_with_the_remedy(database: SqliteDatabase) -> None:
    with pytest.raises(UsageError, match=r"\$1: a tuple cannot be stored: store its parts, or JSON text"):
        await database.execute("INSERT INTO notes (text) VALUES ($1)", (1, 2))


async def test_a_row_that_is_not_such_a_struct_is_refused_by_its_column(database: SqliteDatabase) -> None:
    class Note(Struct):
        id: int
        text: UUID

    await database.execute("INSERT INTO notes (id, text) VALUES (1, 'no id')")
    with pytest.raises(StatementError, match=r"a row is not a Note: .*`\$\[0\]\.text`"):
        await database.fetch_one("SELECT * FROM notes", into=Note)
    assert await database.fetch_one("SELECT * FROM notes WHERE id = 2", into=Note) is None


def test_a_naive_time_is_refused_wherever_a_clock_takes_one() -> None:
    with pytest.raises(ValueError, match="no timezone"):
        ManualClock(NAIVE)
    with pytest.raises(ValueError, match="no timezone"):
        rfc3339(NAIVE)
    assert rfc3339(NAIVE.replace(tzinfo=UTC)) == "2026-11-29T08:00:00.000000Z"
    assert Random(Clock()).uuid7().version == 7


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT '$1', $1", ("$1", "one")),
        ("SELECT 'it''s $2', $2", ("it's $2", "two")),
        ("SELECT $1 -- not $2\n, $2", ("one", "two")),
        ("SELECT $1 /* not $2,\n nor '$1' */, $2", ("one", "two")),
        ('SELECT $1 AS "$2", $2', ("one", "two")),
        ("SELECT $1 AS `$2`, $2", ("one", "two")),
        ("SELECT $1 AS [$2], $2", ("one", "two")),
        ("SELECT a$1, $2 FROM (SELECT $1 AS a$1)", ("one", "two")),
        ("SELECT '?', $1, '?1', ':a', '@a'", ("?", "one", "?1", ":a", "@a")),
        ("SELECT $1||$2, '--', $1 -- '", ("onetwo", "--", "one")),
        ("SELECT json_extract('{\"$1\": 7}', '$.\"$1\"'), $2 /* open", (7, "two")),
    ],
)
async def test_a_parameter_inside_text_names_or_comments_stays_as_it_is(
    database: SqliteDatabase, sql: str, expected: tuple[Any, ...]
) -> None:
    row = await database.fetch_one(sql, "one", "two") if "$2" in sql else await database.fetch_one(sql, "one")
    assert row is not None
    assert tuple(row.values()) == expected


async def test_ten_and_more_parameters_keep_their_numbers(database: SqliteDatabase) -> None:
    rows = await database.fetch("SELECT $10 || $1 || $11 AS text", *"abcdefghijk")
    assert rows == [{"text": "jak"}]
