"""`python -m config.cli`: the same as `callboard`."""

from config.cli import main

main()
