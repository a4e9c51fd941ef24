"""`callboard bench`: measure how many messages per second a small typed service handles."""

from config.cli.bench.commands import bench_command

__all__ = ["bench_command"]
