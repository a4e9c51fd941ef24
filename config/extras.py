"""Find the extra of Callboard that installs a missing optional package."""

import re

_DISTRIBUTIONS = {
    "argon2": "argon2-cffi",
    "paho": "paho-mqtt",
    "prompt_toolkit": "prompt-toolkit",
    "swagger_ui": "swagger-ui-py",
    "yaml": "pyyaml",
}
"""Distribution names by module name, where the two differ."""
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+).*extra == ['\"](?P<extra>[^'\"]+)['\"]")


def extra_for(module: str) -> str | None:
    """Return the smallest extra that installs a module, or None if no extra does.

    Args:
        module: the module's name, possibly dotted.
    """
    from importlib.metadata import PackageNotFoundError, requires  # only errors need it

    package = module.partition(".")[0]
    wanted = _DISTRIBUTIONS.get(package, package)
    extras: dict[str, set[str]] = {}
    try:
        requirements = requires("callboard") or []
    except PackageNotFoundError:
        return None
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is not None:
            extras.setdefault(match["extra"], set()).add(match["name"])
    candidates = sorted((len(names), extra) for extra, names in extras.items() if wanted in names)
    return candidates[0][1] if candidates else None
