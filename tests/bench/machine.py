"""What a run depends on: the machine, its load, and the versions. Neither the machine's name nor any path."""

import os
import platform
from importlib.metadata import version

import msgspec

from runtime import Struct


class Machine(Struct):
    """Where a run was made.

    Attributes:
        load: how many processes wanted to run in the minute before the run, on average.
        load_after: the same at the end of the run, which adds its own processes.
    """

    system: str
    processor: str
    cores: int
    python: str
    load: float
    versions: dict[str, str]
    load_after: float = 0.0


def describe() -> Machine:
    """Describe this machine now."""
    packages = ("uvloop", "msgspec", "mqtt5", "granian", "httptools", "aiohttp", "fastapi", "uvicorn")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 2),
        versions={name: version(name) for name in packages},
    )


def with_load_after(machine: Machine) -> Machine:
    """Add the present load to the description from before the run."""
    return msgspec.structs.replace(machine, load_after=round(os.getloadavg()[0], 2))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
