"""A clock that a test sets from outside of a process: as `sitecustomize.py`, it adds the seconds in a file to the time of day."""

# libfaketime sets the clock of a process, too, but makes it need five times as much of the processor
SET_CLOCK = """
import time

_real, _offset, _until = time.time, 0.0, 0.0

def _set_time():
    global _offset, _until
    now = _real()
    if now >= _until:
        try:
            _offset = float(open({file!r}).read() or 0)
        except OSError:
            pass
        _until = now + 0.5
    return now + _offset

time.time = _set_time
"""
"""The code. `file` stands for the path of the file."""
