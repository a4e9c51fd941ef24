"""The `callboard` command. Each command stands in a module of its own, loaded when it is used."""

import importlib
import os
import sys
import traceback

import rich_click as click

from config.extras import extra_for

_COMMANDS = {
    "dev": "config.cli.dev",
    "run": "config.cli.run",
    "routes": "config.cli.show",
    "openapi": "config.cli.show",
    "config": "config.cli.show",
    "up": "config.cli.up",
    "services": "config.cli.services",
    "call": "config.cli.call",
    "tail": "config.cli.tail",
    "devices": "config.cli.devices",
    "doctor": "config.cli.doctor",
    "bench": "config.cli.bench",
}


class _Lazy(click.RichGroup):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(module), f"{cmd_name}_command")
        except ModuleNotFoundError as error:
            extra = None if error.name is None else extra_for(error.name)
            if error.name is None or extra is None:
                raise
            return _missing(cmd_name, error.name, extra)
        return command


def _needs(subject: str, module: str, extra: str) -> str:
    return f"{subject} needs the package {module}, which is not installed here: pip install 'callboard[{extra}]'"


def _missing(name: str, module: str, extra: str) -> click.Command:
    """A replacement for a command whose packages are not installed. It accepts any arguments and says what to install."""

    def fail() -> None:
        from runtime import CallboardError

        raise CallboardError(_needs(f"`callboard {name}`", module, extra))

    return click.RichCommand(
        name=name,
        callback=fail,
        help=f"Not available: install the extra `{extra}`.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="callboard")
def cli() -> None:
    """Services as actors: written once, played in one process or as containers on a broker."""


def main() -> None:
    """Runs the command line. What the user can mend is one line and exit status 2."""
    from runtime import CallboardError

    try:
        cli.main(standalone_mode=False)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CallboardError as error:
        click.echo(f"callboard: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except ModuleNotFoundError as error:
        extra = None if error.name is None else extra_for(error.name)
        if error.name is None or extra is None:
            _unexpected(error)
            return
        click.echo(f"callboard: {_needs('this command', error.name, extra)}", err=True)
        sys.exit(2)
    except SyntaxError:
        if "_CALLBOARD_DEV_AGAIN" in os.environ:
            _after_a_change()
        traceback.print_exc(limit=0)
        sys.exit(1)
    except Exception as error:
        _unexpected(error)


def _unexpected(error: Exception) -> None:
    """Raise an error that no user can cause, unless `dev` has just restarted: then wait for the next change of code."""
    if "_CALLBOARD_DEV_AGAIN" not in os.environ:
        raise error
    _after_a_change()


def _after_a_change() -> None:
    """`dev` could not even be imported after a change of code: waits for the next."""
    from config.cli import reload

    traceback.print_exc()
    reload.wait_and_start_anew()
