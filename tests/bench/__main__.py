"""`make bench`: measure ours, the peers, and possibly another checkout in turn, and compare them.

    python -m tests.bench [--rounds 5] [--only local,mqtt] [--base CHECKOUT]

Without `--only`, it writes docs/performance.json, docs/performance.svg, and the generated parts of docs/performance.md.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from config.cli.bench.gateway import require_wrk
from config.cli.bench.processes import broker
from config.cli.common import run_loop
from runtime import CallboardError, Struct
from tests.bench import machine, moleculer, page, ratios, table
from tests.bench.figures import read
from tests.bench.other_version import other_version
from tests.bench.results import Measured, Results
from tests.bench.samples import spread

_OURS: dict[str, tuple[str, ...]] = {
    **{name: ("config.cli", "bench", name, "--json") for name in ("local", "mqtt", "events", "http", "http-mqtt", "peers")},
    **{name: ("tests.bench.scenarios", name) for name in ("handlers", "mqtt-more", "wide", "durable", "memory")},
    "latency": ("tests.bench.latency", "ours"),
}
"""What is measured in each round, as the arguments of `python -m`. The version before is measured in the same way."""
_ONCE = {name: ("tests.bench.scenarios", name) for name in ("system", "rental")}
"""What is measured only in the first round, and compared with nothing."""
_MOLECULER: dict[str, tuple[str, ...]] = {
    **{name: ("tests.bench.moleculer", name) for name in ("local", "mqtt", "events", "http", "http-mqtt")},
    "latency": ("tests.bench.latency", "moleculer"),
}
_FASTAPI: dict[str, tuple[str, ...]] = {
    "peers": ("tests.bench.fastapi_by_hand",),
    "latency": ("tests.bench.latency", "fastapi"),
}
_TIMEOUT = 600
"""Seconds that a command may take."""

Figures = dict[str, dict[str, Measured]]
"""By the side and the name of the figure."""


class Side(Struct):
    """A side of the comparison: its name, the folder to run in, and the command for each scenario."""

    name: str
    folder: Path
    commands: dict[str, tuple[str, ...]]


def sides(base: Path | None, with_moleculer: bool) -> list[Side]:
    """Return what takes turns in each scenario."""
    here = Path.cwd()
    found = [Side(table.OURS, here, _OURS)]
    if base is not None:
        found.append(Side(table.BEFORE, base, _OURS))
    if with_moleculer:
        found.append(Side(table.MOLECULER, here, _MOLECULER))
    found.append(Side(table.FASTAPI, here, _FASTAPI))
    return found


async def measure(taking_turns: Sequence[Side], scenarios: Sequence[str], rounds: int) -> tuple[Figures, list[str]]:
    """Return the figures of each side over the rounds, and which commands have failed."""
    values: dict[tuple[str, str, str], list[float]] = {}
    failed: list[str] = []
    for number in range(rounds):
        for scenario in scenarios:
            if scenario in _ONCE and number > 0:
                continue
            for side in taking_turns if number % 2 == 0 else reversed(taking_turns):
                command = (_ONCE if side.name == table.OURS else {}).get(scenario) or side.commands.get(scenario)
                if command is None:
                    continue
                print(f"round {number + 1}: {scenario}, {side.name}", file=sys.stderr)
                try:
                    figures = read(await _output(command, side.folder))
                except CallboardError as error:
                    print(error, file=sys.stderr)
                    failed.append(f"{scenario} of {side.name}, in round {number + 1}")
                    continue
                for figure in figures:
                    values.setdefault((side.name, figure.name, figure.unit), []).append(figure.value)
    found: Figures = {}
    for (side_name, name, unit), measured in values.items():
        found.setdefault(side_name, {})[name] = Measured(unit, spread(measured), tuple(measured))
    return found, failed


async def _output(arguments: Sequence[str], folder: Path) -> str:
    """Return what a command prints.

    Raises:
        CallboardError: if it fails, or does not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    command = f"python -m {' '.join(arguments)}"
    try:
        async with asyncio.timeout(_TIMEOUT):
            output, errors = await process.communicate()
    except TimeoutError:
        raise CallboardError(f"{command} did not end within {_TIMEOUT} seconds") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise CallboardError(f"{command} failed with status {process.returncode}:\n{errors.decode(errors='replace')}")
    return output.decode()


async def _with_broker(taking_turns: Sequence[Side], scenarios: Sequence[str], rounds: int) -> tuple[Figures, list[str]]:
    """Measure with one broker for all."""
    async with broker() as settings:
        os.environ["CALLBOARD_BENCH_BROKER"] = settings.mqtt.url
        return await measure(taking_turns, scenarios, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure and compare.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="scenarios, separated by commas; nothing is written")
    parser.add_argument("--base", type=Path, help="a checkout of another version to compare with")
    options = parser.parse_args()
    scenarios = options.only.split(",") if options.only else [*_OURS, *_ONCE]
    unknown = set(scenarios) - _OURS.keys() - _ONCE.keys()
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}: choose from {', '.join([*_OURS, *_ONCE])}")
    require_wrk()
    absent = moleculer.missing()
    if absent is not None:
        print(f"{absent} is not installed, so Moleculer is not measured (Debian: apt-get install npm)", file=sys.stderr)
    before = machine.describe()
    with ExitStack() as stack:
        base = None if options.base is None else stack.enter_context(other_version(options.base))
        figures, failed = run_loop(_with_broker(sides(base, absent is None), scenarios, options.rounds))
    results = Results(machine.with_load_after(before), figures)
    print(page.printed(table.lines(results)))
    if failed:
        sys.exit(f"nothing was written, because these failed: {'; '.join(failed)}")
    if options.only is None:
        page.publish(Results(results.machine, figures, run_loop(ratios.measure(ratios.GROUPS, 2 * ratios.ROUNDS))))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
