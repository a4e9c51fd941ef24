"""Logs: what records contain, and that no value can begin a new line, control the terminal, or look like another record."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from config.load import load
from config.logs import formatter, set_up_logging
from config.packages import ROOT
from config.settings import Settings
from runtime import Clock, Secret, Struct
from runtime.repeats import Repeats
from runtime.telemetry import current, log_key_change, log_refusal, logger, printable

FORGED = "12:00:00 INFO    callboard.auth: admin has logged in"
BREAKS = (
    "\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1b[2K\x1b[1A",
    "\x1c",
    "\x7f",
    "\x85",
    "\x9b1A",
    "\u2028",
    "\u2029",
    "\u202e",
    "\ud800",
)
"""Line breaks of several standards, ANSI and C1 sequences, a change of direction, and half of a character."""


class JsonFormatter(logging.Formatter):
    """A renderer that somebody else has written."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"message": record.getMessage()}, ensure_ascii=False)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def text() -> logging.Formatter:
    return formatter("auto", Terminal())


def plain() -> logging.Formatter:
    return formatter("text", io.StringIO())


def as_json() -> logging.Formatter:
    return formatter("auto", io.StringIO())


RENDERERS: tuple[Callable[[], logging.Formatter], ...] = (plain, as_json, logging.Formatter, JsonFormatter)


def rendered(name: str, formatter: logging.Formatter, write: Callable[[logging.Logger], None]) -> str:
    """Return what a handler with a formatter writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logger(name)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # pytest's own handler raises
    try:
        write(log)
    finally:
        log.removeHandler(handler)
        log.propagate = True
    return stream.getvalue()


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("text", BREAKS, ids=ascii)
def test_a_message_is_one_printable_line_in_every_renderer(text: str, renderer: Callable[[], logging.Formatter]) -> None:
    value: Any = f"x{text}{FORGED}"
    for write in (lambda log: log.info("got %s", value), lambda log: log.info(f"got {value}")):
        line = rendered("test", renderer(), write)
        assert line.endswith("\n")
        assert line[:-1].isprintable(), ascii(line)
        assert line.count("got x") == 1


@pytest.mark.parametrize("text", BREAKS, ids=ascii)
def test_the_lines_of_a_traceback_do_not_look_like_records(text: str) -> None:
    def write(log: logging.Logger) -> None:
        try:
            raise ValueError(f"x{text}{FORGED}")
        except ValueError:
            log.exception("it failed", stack_info=True)

    first, *rest = rendered("test", plain(), write)[:-1].split("\n")
    assert first.endswith("it failed")
    assert any("ValueError: x" in line for line in rest)
    assert all(line.startswith("  ") and line.isprintable() for line in rest), rest


def test_records_of_other_libraries_are_rendered_in_the_same_way() -> None:
    record = logging.LogRecord("aiohttp", logging.WARNING, "", 0, "bad header %s", (f"x\n{FORGED}",), None)
    assert "\n" not in plain().format(record)


def test_ordinary_text_is_unchanged() -> None:
    text = "Grüße aus Köln: 5 € — “naïve” 日本語 🛴 C:\\new"
    assert printable(text) == text


def test_wrong_arguments_of_a_log_call_do_not_reach_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    rendered("test", plain(), lambda log: log.info("%d", "x"))
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize("text", BREAKS)
async def test_a_refusal_is_one_line_of_quoted_values(text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    log_refusal(Repeats(Clock()), "token", f'no"{text}{FORGED}', service="a", client=None, path=f'/x" what="login"{text}')
    (record,) = caplog.records
    line = record.getMessage()
    assert line.isprintable()
    assert line.startswith('security.refused what="token" service="a" path="/x\\" what=\\"login\\"')
    assert "client" not in line
    assert (record.name, vars(record)["event"], vars(record)["details"]["service"]) == (
        "callboard.security",
        "security.refused",
        "a",
    )


class Handled:
    """A message that is being handled."""

    service, node, request_id, trace = "rides", "rides-1", "r-1", f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def handled() -> Iterator[None]:
    before = current.set(Handled())
    yield
    current.reset(before)


@pytest.mark.usefixtures("handled")
def test_a_record_as_json_has_its_time_with_zone_and_the_ids_of_its_message() -> None:
    line = rendered("rides", as_json(), lambda log: log.warning("a %s", "b", extra={"incident": "i-1", "scooter": 7}))
    record = json.loads(line)
    assert datetime.fromisoformat(record.pop("time")).tzinfo is not None
    assert record == {
        "level": "warning", "logger": "callboard.rides", "message": "a b", "service": "rides", "node": "rides-1",
        "request_id": "r-1", "trace_id": "a" * 32, "incident": "i-1", "scooter": 7,
    }  # fmt: skip


@pytest.mark.usefixtures("handled")
def test_a_record_as_text_begins_with_date_level_and_logger() -> None:
    line = rendered("rides", plain(), lambda log: log.warning("a %s", "b", extra={"scooter": "7 and 8"}))
    time, rest = line.split(" ", 1)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert rest == 'WARNING callboard.rides: a b request_id=r-1 scooter="7 and 8"\n'


def test_only_a_terminal_gets_colours() -> None:
    write: Callable[[logging.Logger], None] = lambda log: log.warning("a")  # noqa: E731
    assert "\x1b[" in rendered("test", text(), write)
    assert "\x1b[" not in rendered("test", plain(), write)


@pytest.mark.parametrize("renderer", [plain, as_json, text])
def test_a_traceback_does_not_show_the_values_of_variables(renderer: Callable[[], logging.Formatter]) -> None:
    def write(log: logging.Logger) -> None:
        password = "correct horse"  # noqa: F841
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("it failed")

    line = rendered("test", renderer(), write)
    assert "ValueError: no" in line
    assert "correct horse" not in line.replace('password = "correct horse"', "")


@given(st.dictionaries(st.sampled_from(["a", "b", "event", "details", "level"]), st.text() | st.integers() | st.binary()))
def test_any_fields_make_one_line(fields: dict[str, Any]) -> None:
    for renderer in (plain, as_json):
        line = rendered("test", renderer(), lambda log: log.info("found", extra=fields))
        assert line[:-1].isprintable(), ascii(line)
        assert line.endswith("\n")
    json.loads(line)


def test_a_service_that_uses_structlog_writes_the_same_records(monkeypatch: pytest.MonkeyPatch) -> None:
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream)
    try:
        set_up_logging(Settings())
        structlog.get_logger("shop").info("sold", item="x", at="now\n")
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before
        root.setLevel(level)
    record = json.loads(stream.getvalue())
    assert (record["logger"], record["level"], record["message"], record["item"]) == ("shop", "info", "sold", "x")


def test_the_level_of_one_service_differs() -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    settings = load(ROOT / "callboard.toml", {"CALLBOARD_SERVICES__WALLET__LOG__LEVEL": "error"}).settings
    try:
        set_up_logging(settings)
        assert not logging.getLogger("callboard.wallet").isEnabledFor(logging.WARNING)
        assert logging.getLogger("callboard.rides").isEnabledFor(logging.INFO)
    finally:
        logging.getLogger("callboard.wallet").setLevel(logging.NOTSET)
        root.handlers[:] = before
        root.setLevel(level)


async def test_a_change_of_keys_is_a_security_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    log_key_change("retired", service="auth", kid="k-1")
    (record,) = caplog.records
    assert record.getMessage() == 'security.keys what="retired" service="auth" kid="k-1"'
    assert (record.name, vars(record)["event"]) == ("callboard.security", "security.keys")


class Login(Struct):
    user: str
    password: Secret[str]


@pytest.mark.parametrize("renderer", [plain, as_json])
def test_a_secret_field_is_masked_in_every_form(renderer: Callable[[], logging.Formatter]) -> None:
    login = Login("u", "hunter2")
    line = rendered("test", renderer(), lambda log: log.info("m", extra={"one": login, "more": {"deep": [login]}}))
    assert "hunter2" not in line
    assert line.count("***") == 2
