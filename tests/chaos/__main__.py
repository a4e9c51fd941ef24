"""`make chaos SEEDS="1 2 3"`: the closing line is `N seeds: 0 lost, 0 twice, 0 stuck`."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", default="1 2 3", help="the seeds, with spaces between them")
    parser.add_argument("--engine", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument(
        "--kind", choices=("mqtt", "http", "both"), default="both", help="the transport; with `both`, seeds alternate"
    )
    parser.add_argument("--replicas", type=int, default=3, help="instances of each service on PostgreSQL")
    parser.add_argument("--seconds", type=float, default=40, help="how long there are faults")
    parser.add_argument("--stories", type=int, default=250, help="rides for each seed")
    chosen = parser.parse_args()
    lost = twice = stuck = 0
    seeds = [int(seed) for seed in chosen.seeds.split()]
    for seed in seeds:
        kind = ("mqtt", "http")[seed % 2] if chosen.kind == "both" else chosen.kind
        for engine in ("sqlite", "postgres") if chosen.engine == "both" else (chosen.engine,):
            with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
                outcome = asyncio.run(
                    run(
                        Path(folder),
                        seed,
                        engine=engine,
                        kind=kind,
                        replicas=chosen.replicas,
                        seconds=chosen.seconds,
                        stories=chosen.stories,
                    )
                )
            found = outcome.account
            lost, twice, stuck = lost + len(found.lost), twice + len(found.twice), stuck + len(found.stuck)
            print(
                f"seed {seed} on {engine} over {kind}: {outcome.rides} rides in {outcome.stories} stories, {len(outcome.faults)} faults, settled in "
                f"{outcome.settled:.1f} s: {len(found.lost)} lost, {len(found.twice)} twice, {len(found.stuck)} stuck",
                flush=True,
            )
            for line in (*found.lost, *found.twice, *found.stuck)[:20]:
                print(f"  {line}", flush=True)
    print(f"{len(seeds)} seeds: {lost} lost, {twice} twice, {stuck} stuck")
    return int(bool(lost or twice or stuck))


if __name__ == "__main__":
    sys.exit(main())
