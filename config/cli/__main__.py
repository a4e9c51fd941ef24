"""Entry point of `python -m config.cli`, which is the same as `callboard`."""

from config.cli import main

main()
