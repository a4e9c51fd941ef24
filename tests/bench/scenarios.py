"""The benchmarks of this package that measure one or more scenarios each.

`python -m tests.bench.scenarios NAME` runs one of them and prints a JSON object per figure.
"""

import importlib
import sys

NAMES = ("handlers", "mqtt-more", "wide", "durable", "memory", "system", "rental", "watching")


def main() -> None:
    """Run the benchmark that is named on the command line."""
    (name,) = sys.argv[1:]
    if name not in NAMES:
        sys.exit(f"there is no benchmark {name!r}: choose one of {', '.join(NAMES)}")
    importlib.import_module(f"tests.bench.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
