"""`callboard new`: begin a project, or add a service to one, from templates."""

import keyword
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from config import PACKAGES
from config.load import DEFAULT_FILE, load
from runtime import CallboardError

_TEMPLATES = Path(__file__).parent.parent / "templates"
_LONGEST = 30
"""The characters of a name, with which the lines of the templates are not too long."""
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


@click.command("new")
@click.argument("words", metavar="[service] NAME", nargs=-1, required=True)
def new_command(words: tuple[str, ...]) -> None:
    """Begin a project in a new folder NAME, with one service of that name.

    With `service`, add a service to the project of the working folder: its messages, handlers, tables, settings, and tests.

    \b
    Examples:
      callboard new shop
      cd shop && callboard new service mailer
    """
    match words:
        case ("service", name):
            _check_name(name)
            if not Path(DEFAULT_FILE).exists():
                raise CallboardError(f"no project here: {Path.cwd()} has no {DEFAULT_FILE}: start in the folder of your project")
            created = _new_service(Path(), name)
            created.append(Path(DEFAULT_FILE))
            then = "callboard dev, unless it runs already"
        case (name,):
            _check_name(name)
            folder = Path(name)
            if folder.exists():
                raise CallboardError(f"{folder}/ exists already: choose another name, or remove it")
            created = [*_written("project", folder, name)]
            created += _new_service(folder, name)
            then = f"cd {name} && make dev"
        case _:
            raise CallboardError(
                f"callboard new {' '.join(words)}: expected `callboard new NAME`, or `callboard new service NAME`"
            )
    for path in sorted(set(created)):
        click.echo(f"  {path}")
    click.echo(f"\n  Then: {then}")


def _check_name(name: str) -> None:
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        raise CallboardError(
            f"{name!r} cannot be a name: expected lower-case letters and digits, with single - or _ between them"
        )
    if len(name) > _LONGEST:
        raise CallboardError(f"{name!r} cannot be a name: expected at most {_LONGEST} characters")
    if package in (*PACKAGES, "auth", "callboard", "tests") or package in sys.stdlib_module_names or keyword.iskeyword(package):
        raise CallboardError(
            f"{name!r} cannot be a name: Callboard or Python has a package or a word of that name: choose another one"
        )


def _new_service(folder: Path, name: str) -> list[Path]:
    """Write a service's files, and list it in the project's file. Return the files."""
    package, file = name.replace("-", "_"), folder / DEFAULT_FILE
    if name in load(file).settings.services:
        raise CallboardError(f"{file} has a service {name} already: choose another name")
    for taken in (folder / package, folder / f"{package}.py", folder / "tests" / f"test_{package}.py"):
        if taken.exists():
            raise CallboardError(f"{taken} exists already: choose another name")
    written = [*_written("service", folder, name)]
    with file.open("a", encoding="utf-8") as listing:
        listing.write(f'\n[services.{name}]\nclass = "{package}.service:{_class(name)}"\n')
    return written


def _written(kind: str, folder: Path, name: str) -> Iterator[Path]:
    """Write the files of a kind, and yield each."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES / kind),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # what is written is code, not HTML
    )
    package = name.replace("-", "_")
    values = {
        "name": name, "package": package, "cls": _class(name), "variable": package.upper(), "requirement": _requirement(),
    }  # fmt: skip
    for template in sorted(environment.list_templates()):
        path = folder / template.replace("PACKAGE", package).removesuffix(".jinja")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(environment.get_template(template).render(values), encoding="utf-8")
        except OSError as error:
            raise CallboardError(f"{path}: {error.strerror}") from error
        yield path


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in re.split("[-_]", name))


def _requirement() -> str:
    """Return what pip needs to install this Callboard: its version, or the place that it was installed from."""
    try:
        found = distribution("callboard")
    except PackageNotFoundError:
        return "callboard[dev,testing]"
    origin: dict[str, Any] = msgspec.json.decode(found.read_text("direct_url.json") or "{}")
    return f"callboard[dev,testing] @ {origin['url']}" if "url" in origin else f"callboard[dev,testing]=={found.version}"
