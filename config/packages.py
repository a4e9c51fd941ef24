"""Keep Callboard's packages and the modules of the user's working directory apart.

Both are imported by top-level names, and `python -m` puts the working directory first on the path.
"""

import importlib
import os
import sys
import sysconfig
from pathlib import Path

from config import PACKAGES

ROOT = Path(__file__).parent.parent
"""The folder that contains Callboard's packages."""


def import_own_packages() -> None:
    """Import Callboard's top-level packages, so that no module of the working directory is taken for one of them."""
    before = list(sys.path)
    try:
        for name in PACKAGES:
            # `services` has no __init__.py, so that a package of that name anywhere on the path would be preferred to it
            sys.path[:] = [str(ROOT)] if name == "services" else [str(ROOT), *before]
            importlib.import_module(name)
    finally:
        sys.path[:] = before


def conflict_hint(error: BaseException) -> str | None:
    """Return what to rename if an import failed because a module of the working directory has the name of a package of ours.

    Args:
        error: the error of the import.
    """
    if isinstance(error, AttributeError):
        module: str = getattr(error.obj, "__name__", "")
    else:
        module = (error.name or "") if isinstance(error, ImportError) else ""
    name = module.partition(".")[0]
    if name not in PACKAGES or Path.cwd() == ROOT:
        return None
    if Path(name, "__init__.py").exists():
        if name == "services":
            return (
                "services/__init__.py hides this folder: remove that file, so that the folder extends Callboard's own services/"
            )
        return f"{name}/ is hidden by Callboard's own package {name}: rename the folder"
    if Path(f"{name}.py").exists():
        return f"{name}.py is hidden by Callboard's own package {name}: rename the file"
    return f"{name}/ is hidden by Callboard's own package {name}: rename the folder" if Path(name).is_dir() else None


def own_command(*arguments: str) -> list[str]:
    """Return a command that runs this command line in another process, whatever the working directory contains."""
    return [sys.executable, "-P", "-m", "config.cli", *arguments]


def own_path() -> dict[str, str]:
    """Return the environment variable that `own_command` needs to find Callboard's packages, if it needs one."""
    given = os.environ.get("PYTHONPATH", "")
    if Path(sysconfig.get_path("purelib")) == ROOT or given.partition(os.pathsep)[0] == str(ROOT):
        return {}
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{given}" if given else str(ROOT)}
