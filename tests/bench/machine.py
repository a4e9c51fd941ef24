"""What a run depends on: the machine, its load, and the versions. Neither the machine's name nor any path."""

import os
import platform
from importlib.metadata import version

from runtime import Struct


class Machine(Struct):
    """Where a run was made.

    Attributes:
        load: how many processes wanted to run on average, just before the run.
    """

    system: str
    processor: str
    cores: int
    python: str
    load: float
    versions: dict[str, str]


def describe() -> Machine:
    """Describe this machine now."""
    packages = ("uvloop", "msgspec", "mqtt5", "granian", "aiohttp", "fastapi", "uvicorn")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 2),
        versions={name: version(name) for name in packages},
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
