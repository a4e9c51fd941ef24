"""What tasks and threads are doing, as the log names it: `Rides.sweep (service.py:12)`."""

import asyncio
import functools
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_RUNTIME = os.path.dirname(__file__) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_POOL = os.path.join("concurrent", "futures", "thread.py")
_ANYIO = os.path.join("anyio", "_backends", "_asyncio.py")


def of_task(task: "asyncio.Task[Any]") -> str:
    """Return the function that a suspended task runs, and the line that it has reached."""
    return _described(list(_frames(task.get_coro()))) or str(task.get_coro())


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine and of those that it awaits, the outermost first."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if isinstance(frame, FrameType):
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def of_methods(cls: type[Any]) -> list[str]:
    """Return what the tasks of the current event loop do that run a method of a class."""
    found: set[str] = set()
    for task in asyncio.all_tasks():
        frames = [] if task is asyncio.current_task() else list(_frames(task.get_coro()))
        for index, frame in enumerate(frames):
            if frame.f_code.co_qualname.startswith(f"{cls.__qualname__}."):
                found.add(_described(frames[index:]) or frame.f_code.co_qualname)
                break
    return sorted(found)


def of_thread(thread: threading.Thread) -> str:
    """Return the function that a thread runs, and the line that it has reached."""
    frames = _frames_of(thread)
    return _described(frames) or _called(thread, frames) or thread.name


def blocking_threads() -> list[threading.Thread]:
    """Return the threads without whose end Python does not end the process. Idle ones of a pool do not count."""
    current = (threading.main_thread(), threading.current_thread())
    threads = [one for one in threading.enumerate() if not one.daemon and one not in current]
    return [one for one in threads if not _is_idle(_frames_of(one))]


def _frames_of(thread: threading.Thread) -> list[FrameType]:
    """Return the frames of a running thread, the outermost first."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
    frames: list[FrameType] = []
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    return frames


def _is_idle(frames: list[FrameType]) -> bool:
    """Return whether a thread is one of a pool and waits for work, or waits for those of a pool."""
    if not frames:
        return True  # it is about to end
    names = [(frame.f_code.co_filename, frame.f_code.co_name) for frame in frames]
    pool = any(file.endswith((_POOL, _ANYIO)) for file, _ in names)
    works = any(file.endswith(_POOL) and name == "run" for file, name in names)
    if any(file.endswith(_ANYIO) for file, _ in names):
        works = not names[-1][0].endswith(("queue.py", "threading.py")) or _described(frames) is not None
    return pool and not works


def _described(frames: list[FrameType]) -> str | None:
    """Return the outermost function that belongs to a service, and its innermost line; None if there is none."""
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith((*_LIBRARIES, _RUNTIME, "<"))]
    if not own:
        return None
    return f"{own[0].f_code.co_qualname} ({os.path.basename(own[-1].f_code.co_filename)}:{own[-1].f_lineno})"


def _called(thread: threading.Thread, frames: list[FrameType]) -> str | None:
    """Return the name of the function that a thread was given, if it is not written in Python."""
    function: Any = getattr(thread, "_target", None)
    for frame in frames:
        if frame.f_code.co_name == "run" and frame.f_code.co_filename.endswith(_POOL):
            function = getattr(frame.f_locals.get("self"), "fn", None)
        elif frame.f_code.co_name == "run" and frame.f_code.co_filename.endswith(_ANYIO):
            function = frame.f_locals.get("func")
    while isinstance(function, functools.partial):  # asyncio.to_thread passes partial(context.run, function, …)
        function = function.args[0] if getattr(function.func, "__name__", "") == "run" else function.func
    name = getattr(function, "__qualname__", None)
    return None if name is None else f"{getattr(function, '__module__', None) or 'builtins'}.{name}"
