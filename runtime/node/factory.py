"""Making the services of a node."""

from collections.abc import Callable
from pathlib import Path

from runtime.contract.errors import CallboardError, DefinitionError, StartError
from runtime.service.service import Service
from runtime.source import innermost, missing_variable

Factory = Callable[[], Service]
"""Makes a service: its class, or a `functools.partial` of it. Called again for every restart."""


def make(factory: Factory) -> Service:
    """Make a service.

    Raises:
        StartError: if an environment variable that it reads is missing.
        DefinitionError: if its `__init__` raises anything else.
    """
    try:
        return factory()
    except KeyError as error:
        text = missing_variable(error)
        if text is None:
            raise _broken(error) from error
        raise StartError(text) from error
    except (CallboardError, ImportError):  # the command line names the package that is missing
        raise
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> DefinitionError:
    where = innermost(error.__traceback__)
    return DefinitionError(f"the service cannot be made: {type(error).__name__}: {error}", None if where is None else Path(where))
