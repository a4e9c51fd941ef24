"""The classes of a project that `callboard.toml` names: its services, and what renders its errors."""

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from config.extras import extra_for
from config.packages import conflict_hint
from runtime import CallboardError, Service, StartError
from runtime.source import innermost, missing_variable, place


class UnknownService(CallboardError):
    """A service that does not exist, cannot be found, or has the name of another service."""


class BrokenService(CallboardError):
    """A service whose module fails when it is imported."""


def import_service(path: str, setting: str) -> type[Service]:
    """Return the class of a service. Raises like `import_class`."""
    found: type[Service] = import_class(path, setting, Service)
    return found


def import_class(path: str, setting: str, base: type[Any]) -> type[Any]:
    """Return a class of the project.

    Args:
        path: the class, as `package.module:Class`.
        setting: the setting that names it, for errors.
        base: what it has to be a subclass of.

    Raises:
        UnknownService: if the class cannot be found, or is no subclass of `base`.
        BrokenService: if its module fails when it is imported.
        DefinitionError: if it is defined wrongly.
    """
    subject = f"{setting}: {path!r}"
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UnknownService(f"{subject}: expected package.module:Class")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's classes are in the working directory
    try:
        found: object = getattr(importlib.import_module(module), name)
    except CallboardError:
        raise
    except (Exception, SystemExit) as error:
        raise _import_error(subject, module, name, error, base) from error
    if not isinstance(found, type) or not issubclass(found, base):
        raise UnknownService(f"{subject} is not a subclass of {base.__name__}{_candidates(module, name, base)}")
    return found


def _candidates(module: str, name: str, base: type[Any]) -> str:
    """Return which subclasses of a class a module has, for an error."""
    here = [
        key for key, value in vars(sys.modules[module]).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module
    ]  # fmt: skip
    near = difflib.get_close_matches(name, here, 1)
    if near:
        return f": did you mean {module}:{near[0]}?"
    return f": {module} has {', '.join(here)}" if here else f": {module} has no {base.__name__.lower()}"


def _import_error(subject: str, module: str, name: str, error: Exception | SystemExit, base: type[Any]) -> CallboardError:
    """Return the error for a class that cannot be imported: the fault, its place, and the remedy."""
    subject = f"{subject} cannot be imported"
    hint = conflict_hint(error)
    if hint is not None:
        return UnknownService(f"{subject}: {hint}")
    if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module}.".startswith(f"{error.name}."):
        near = _near_modules(error.name)
        advice = (
            f"did you mean {near}?"
            if near
            else f"correct the setting, or start in the folder that contains {module.partition('.')[0]}"
        )
        return UnknownService(f"{subject}: there is no module {error.name} in {Path.cwd()} or on the path: {advice}")
    if isinstance(error, AttributeError) and error.obj is sys.modules.get(module):
        return UnknownService(f"{subject}: {module} has no {name}{_candidates(module, name, base)}")
    missing = missing_variable(error)
    if missing is not None:
        return StartError(f"{subject}: {missing}")
    if isinstance(error, SyntaxError):
        where: str | None = place(error.filename or module, error.lineno or 0)
        return BrokenService(f"{subject}: {where}: {type(error).__name__}: {error.msg}")
    where = innermost(error.__traceback__) or module
    if isinstance(error, SystemExit):
        return BrokenService(
            f"{subject}: {where}: the module ends the process (sys.exit) when it is imported: move that into a function, or below "
            'if __name__ == "__main__"'
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = extra_for(error.name)
        remedy = "install its package, or correct the import" if extra is None else f"pip install 'callboard[{extra}]'"
        return BrokenService(f"{subject}: {where}: there is no module {error.name}: {remedy}")
    return BrokenService(f"{subject}: {where}: {type(error).__name__}: {error}")


def _near_modules(missing: str) -> str:
    """Return the module whose name is most like that of a missing one, in the folder where it would be; empty if there is none."""
    parent, _, name = missing.rpartition(".")
    folders = [Path(folder) for folder in getattr(sys.modules.get(parent), "__path__", [])] if parent else [Path.cwd()]
    here = {path.stem for folder in folders for path in folder.glob("*") if path.suffix == ".py" or path.is_dir()}
    near = difflib.get_close_matches(name, here, 1)
    return f"{parent}.{near[0]}".lstrip(".") if near else ""
