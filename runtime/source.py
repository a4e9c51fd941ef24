"""Places in source code, as errors and logs name them: a file and a line."""

import os
import traceback
from pathlib import Path
from types import FunctionType, TracebackType

_NOT_THE_USERS = ("runtime", "importlib", "functools", "contextlib", "abc", "typing", "dataclasses", "msgspec")
"""Top-level packages whose code makes definitions on behalf of other code."""


def place(file: str, line: int) -> str:
    """Return a place as `file:line`. The path is relative if the file is in the working directory."""
    try:
        relative = os.path.relpath(file)
    except ValueError:  # on another drive
        return f"{file}:{line}"
    return f"{file if relative.startswith(os.pardir) else relative}:{line}"


def place_of(definition: object) -> str | None:
    """Return the place of a function or class, or a path as it is. None if the source is not known."""
    if isinstance(definition, Path):
        return str(definition)
    code = getattr(getattr(definition, "__wrapped__", definition), "__code__", None)
    if isinstance(definition, FunctionType) and code is not None:
        return place(code.co_filename, code.co_firstlineno)
    if isinstance(definition, type):
        import inspect

        try:
            return place(inspect.getfile(definition), inspect.getsourcelines(definition)[1])
        except (OSError, TypeError, IndentationError, SyntaxError):  # the class was defined at a prompt
            return None
    return None


def calling_place() -> str | None:
    """Return the place of the innermost running code that is not the runtime's own."""
    for frame, line in traceback.walk_stack(None):
        module: str = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in _NOT_THE_USERS and not frame.f_code.co_filename.startswith("<"):
            return place(frame.f_code.co_filename, line)
    return None


def innermost(trace: TracebackType | None) -> str | None:
    """Return the innermost place of a traceback: in the working directory if it leads through there. None if there is none."""
    found = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(trace)
        if not frame.f_code.co_filename.startswith("<")
    ]
    here = [(file, line) for file, line in found if file.startswith(os.getcwd() + os.sep) and "site-packages" not in file]
    return place(*(here or found)[-1]) if found else None


def missing_variable(error: BaseException) -> str | None:
    """Return the place and the remedy of an error that `os.environ[…]` has raised; None for any other error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not isinstance(error, KeyError) or len(frames) < 2 or frames[-1][0].f_globals.get("__name__") != "os":
        return None
    frame, line = frames[-2]
    return f"{place(frame.f_code.co_filename, line)}: the environment variable {error.args[0]} is not set: set it"
