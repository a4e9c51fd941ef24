"""Making the services of a node."""

from collections.abc import Callable

from runtime.contract.errors import StartError
from runtime.service.service import Service
from runtime.source import missing_variable

Factory = Callable[[], Service]
"""Makes a service: its class, or a `functools.partial` of it. Called again for every restart."""


def make(factory: Factory) -> Service:
    """Make a service.

    Raises:
        StartError: if an environment variable that it reads is missing.
    """
    try:
        return factory()
    except KeyError as error:
        text = missing_variable(error)
        if text is None:
            raise
        raise StartError(text) from error
