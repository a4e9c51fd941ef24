"""`make bench`: the benchmarks for people who develop Callboard."""
