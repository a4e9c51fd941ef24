"""What commands print cannot be forged by what they print about."""

import asyncio
import json
import sys

import pytest

from config.cli.output import json_text, print_error, table
from config.processes import Process, run_groups
from tests.config.test_logs import BREAKS, FORGED


@pytest.mark.parametrize("text", BREAKS, ids=ascii)
def test_errors_and_tables_are_printed_line_by_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"x{text}{FORGED}")
    table([{"name": f"x{text}{FORGED}"}], as_json=False)
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert out.count("\n") == 2
    assert (out + err).replace("\n", "").isprintable()


@pytest.mark.parametrize("text", [text for text in BREAKS if text != "\ud800"], ids=ascii)
def test_printed_json_is_printable_and_means_the_same(text: str) -> None:
    value = {"name": f"Köln 🛴 {text}{FORGED}"}
    for indent in (False, True):
        printed = json_text(value, indent=indent)
        assert all(line.isprintable() for line in printed.split("\n"))
        assert json.loads(printed) == value
        assert "Köln 🛴" in printed


async def test_the_output_of_a_process_stays_behind_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    stop = asyncio.Event()
    lines = "".join(f"x{text}{FORGED}\n" for text in BREAKS if text != "\ud800")
    script = f"import sys, time; sys.stdout.reconfigure(encoding='utf-8'); print({lines!r}, end='', flush=True); time.sleep(60)"
    process = Process("wallet", [sys.executable, "-c", script], {}, 10, 0)
    running = asyncio.create_task(run_groups([[process]], stop))
    printed = ""
    async with asyncio.timeout(30):
        while printed.count("callboard.auth") < len(BREAKS) - 1:
            await asyncio.sleep(0.01)
            printed += capsys.readouterr().out
    stop.set()
    await running
    assert all(line.startswith("wallet     | ") or not line for line in printed.split("\n")), printed
    assert printed.replace("\n", "").isprintable()
