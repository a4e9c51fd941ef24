"""Logs: no value can begin a new line, control the terminal, or look like another record."""

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from runtime import Clock
from runtime.repeats import Repeats
from runtime.telemetry import LOG_FORMAT, LogFormatter, log_refusal, logger, printable

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


RENDERERS: tuple[Callable[[], logging.Formatter], ...] = (LogFormatter, lambda: logging.Formatter(LOG_FORMAT), JsonFormatter)


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

    first, *rest = rendered("test", LogFormatter(), write)[:-1].split("\n")
    assert first.endswith("it failed")
    assert any("ValueError: x" in line for line in rest)
    assert all(line.startswith("  ") and line.isprintable() for line in rest), rest


def test_records_of_other_libraries_are_rendered_in_the_same_way() -> None:
    record = logging.LogRecord("aiohttp", logging.WARNING, "", 0, "bad header %s", (f"x\n{FORGED}",), None)
    assert "\n" not in LogFormatter().format(record)


def test_ordinary_text_is_unchanged() -> None:
    text = "Grüße aus Köln: 5 € — “naïve” 日本語 🛴 C:\\new"
    assert printable(text) == text


def test_wrong_arguments_of_a_log_call_do_not_reach_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    rendered("test", LogFormatter(), lambda log: log.info("%d", "x"))
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
