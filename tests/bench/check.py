"""`make bench-check`: fail if a ratio to Python's own ceilings has fallen by more than 30 % against docs/performance.json.

With `--write`, it stores the measured ratios there instead.
"""

import sys
from collections.abc import Mapping

import msgspec

from config.cli.common import run_loop
from tests.bench import page, ratios
from tests.bench.results import FILE, Results
from tests.bench.samples import Spread

LIMIT = 0.7
"""The least share of a stored ratio that passes."""


def fallen(stored: Mapping[str, Spread], measured: Mapping[str, Spread]) -> dict[str, str]:
    """Return what is wrong with each ratio that has fallen too far, or of which only one side exists, by its name."""
    found: dict[str, str] = {}
    for name in stored.keys() | measured.keys():
        if name not in stored:
            found[name] = "is not in the file: store it with `make bench-check ARGS=--write`"
        elif name not in measured:
            found[name] = "is in the file but no longer measured: remove it with `make bench-check ARGS=--write`"
        elif measured[name].median < LIMIT * stored[name].median:
            found[name] = (
                f"has fallen from {stored[name].median} to {measured[name].median}, by {1 - measured[name].median / stored[name].median:.0%}: "
                "find what made ours slower; if that is intended, store it with `make bench-check ARGS=--write`"
            )
    return found


def better(first: Mapping[str, Spread], second: Mapping[str, Spread]) -> dict[str, Spread]:
    """Return the higher one of two measurements of each ratio. Noise only lowers the ratio of the longer path."""
    both = dict(first)
    for name, again in second.items():
        if name not in both or again.median > both[name].median:
            both[name] = again
    return both


def main() -> None:
    results = Results.load()
    if sys.argv[1:] == ["--write"]:
        stored = run_loop(ratios.measure(ratios.GROUPS, 2 * ratios.ROUNDS))
        page.publish(msgspec.structs.replace(results, ceilings=stored))
        print(f"stored {len(stored)} ratios in {FILE.name}")
        return
    measured = run_loop(ratios.measure(ratios.GROUPS))
    faults = fallen(results.ceilings, measured)
    if faults:
        again = [group for group in ratios.GROUPS if faults.keys() & set(group.names)]
        print(f"measuring again, because these were low: {', '.join(sorted(faults))}")
        measured = better(measured, run_loop(ratios.measure(again, 2 * ratios.ROUNDS)))
        faults = fallen(results.ceilings, measured)
    width = max(map(len, measured))
    for name, found in measured.items():
        before = results.ceilings.get(name)
        print(f"{name:{width}}  {found.median:8.3f}  ± {found.deviation:4.0%}   stored: {before.median if before else '-'}")
    if faults:
        sys.exit("\n".join(f"bench-check: {name} {fault}" for name, fault in sorted(faults.items())))


if __name__ == "__main__":
    main()
