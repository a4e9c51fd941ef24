"""Environment variables that begin like ours and that neither we nor the user has set.

Kubernetes describes every Service of a namespace in variables of each pod, and docker does so for linked containers. A
Service named `callboard-gateway` becomes `CALLBOARD_GATEWAY_SERVICE_HOST`, `CALLBOARD_GATEWAY_PORT=tcp://10.0.0.1:8000`, and
more (kubernetes.io, "Accessing the Service"; docs.docker.com, "Legacy container links").
"""

import re

_URL = r"(?:tcp|udp|sctp)://\S+"
_NUMBER = r"\d{1,5}"
_ADDRESS = r"[0-9A-Fa-f.:\[\]]+"
_SHAPES = (
    (r"_SERVICE_HOST", _ADDRESS),
    (r"_SERVICE_PORT(?:_[A-Z0-9_]*[A-Z0-9])?", _NUMBER),
    (r"_PORT", _URL),
    (r"_PORT_\d+_(?:TCP|UDP|SCTP)(?:_START|_END)?", _URL),
    (r"_PORT_\d+_(?:TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    (r"_PORT_\d+_(?:TCP|UDP|SCTP)_PORT(?:_START|_END)?", _NUMBER),
    (r"_PORT_\d+_(?:TCP|UDP|SCTP)_ADDR", _ADDRESS),
    (r"_NAME", r"/\S+"),
    (r"_ENV_\w+", r".*"),
)
"""How the name of a variable ends behind the name of the Service or container, and which values belong to it."""
_NAME = r"CALLBOARD(?:[A-Z0-9_.]*[A-Z0-9])?"
_SHAPE_OF_NAME = re.compile(rf"{_NAME}(?:{'|'.join(name for name, _ in _SHAPES)})")
_SHAPE = [(re.compile(f"{_NAME}{name}"), re.compile(value, re.DOTALL)) for name, value in _SHAPES]

REMEDY = (
    "Kubernetes (for a Service) and docker (for a link) make variables of this form: turn them off there with "
    "enableServiceLinks: false, or choose a name that does not begin with callboard"
)
"""What to do about a variable that only its name makes look like one of theirs."""


def is_foreign(name: str, value: str) -> bool:
    """Return whether Kubernetes or docker makes such a variable, and no setting has its form."""
    return any(shape.fullmatch(name) and values.fullmatch(value) for shape, values in _SHAPE)


def looks_foreign(name: str) -> bool:
    """Return whether Kubernetes or docker makes variables with such a name."""
    return _SHAPE_OF_NAME.fullmatch(name) is not None
