"""The `callboard` command line. The module of a command is imported when the command is used."""

import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import rich_click as click

from config.extras import extra_for

_COMMANDS = {
    "new": "config.cli.new",
    "dev": "config.cli.dev",
    "run": "config.cli.run",
    "routes": "config.cli.show",
    "openapi": "config.cli.show",
    "config": "config.cli.show",
    "up": "config.cli.up",
    "provision": "config.cli.provision",
    "deploy": "config.cli.deploy",
    "migrate": "config.cli.migrate",
    "services": "config.cli.services",
    "call": "config.cli.call",
    "publish": "config.cli.publish",
    "tail": "config.cli.tail",
    "streams": "config.cli.streams",
    "resume": "config.cli.resume",
    "dead-letters": "config.cli.dead_letters",
    "compensations": "config.cli.compensations",
    "subscribers": "config.cli.subscribers",
    "backup": "config.cli.backups",
    "restore": "config.cli.backups",
    "keys": "config.cli.keys",
    "drain": "config.cli.drain",
    "devices": "config.cli.devices",
    "doctor": "config.cli.doctor",
    "bench": "config.cli.bench",
    "map": "config.cli.map",
    "asyncapi": "config.cli.asyncapi",
    "repl": "config.cli.repl",
    "completion": "config.cli.completion",
}


_COMPLETE = "_CALLBOARD_COMPLETE"
"""The environment variable by which a shell asks for completion."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _LazyGroup(click.RichGroup):
    """A command group that imports a command when it is looked up."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # as in `callboard config show | head`
            _discard_output()
            sys.exit(0)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from runtime import CallboardError

            [near, *_] = [*difflib.get_close_matches(args[0], _COMMANDS), ""]
            meant = f"did you mean {near}? " if near else ""
            raise CallboardError(f"there is no command {args[0]!r}: {meant}`callboard --help` lists all commands")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(module), f"{cmd_name.replace('-', '_')}_command")
        except ModuleNotFoundError as error:
            extra = None if error.name is None else extra_for(error.name)
            if error.name is None or extra is None:
                raise
            return _unavailable(cmd_name, error.name, extra)
        return command


def _discard_output() -> None:
    """Let nobody see what is still to be written; Python would complain when it flushes the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _missing_package(subject: str, module: str, extra: str) -> str:
    """Return the error text for a package that is not installed."""
    return f"{subject} needs the package {module}, which is not installed here: pip install 'callboard[{extra}]'"


def _unavailable(name: str, module: str, extra: str) -> click.Command:
    """Return a placeholder for a command whose packages are not installed. It accepts any arguments and fails."""

    def fail() -> None:
        from runtime import CallboardError

        raise CallboardError(_missing_package(f"`callboard {name}`", module, extra))

    return click.RichCommand(
        name=name,
        callback=fail,
        help=f"Not here: it needs {module} (install the extra `{extra}`).",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="callboard")
def cli() -> None:
    """Run and inspect systems of services, in one process or distributed over many.

    `callboard new NAME` begins a project, and `callboard dev` runs it in one process.
    """


def main() -> None:
    """Run the command line, and end the process even if a thread of a service does not end."""
    try:
        if _COMPLETE in os.environ:
            _complete()
        run_command()
    except SystemExit as ended:
        _leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
    except BaseException:  # a KeyboardInterrupt, too: the process must end, whatever ends the command
        if _unfinished():
            traceback.print_exc()
        _leave(1)
        raise
    _leave(0)


def _complete() -> None:
    """Answer a shell that completes a word. Whatever fails, nothing is printed, because it would be in the middle of a line."""
    try:
        cli.main(prog_name="callboard", standalone_mode=False)
    except Exception:
        sys.exit(1)


def _unfinished() -> bool:
    """Return whether a command has left a thread or a task behind."""
    ending = sys.modules.get("config.ending")
    return ending is not None and bool(ending.left_behind)


def _leave(status: int) -> None:
    if _unfinished():
        from config import ending

        ending.leave(status)


def run_command(words: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> None:
    """Run one command.

    An error that the user can fix, such as a wrong setting, is printed as one line, and the exit status is 2. If a node fails
    while it runs, it is 1, like after an unexpected error: a restart may help.

    Args:
        words: the command and its arguments; by default those of this process.
        defaults: values of options that are not given, by the names of their parameters, below those of the commands.

    Raises:
        SystemExit: if it fails.
    """
    from config.cli.output import print_error
    from config.cli.status import exit_status
    from runtime import CallboardError

    try:
        cli.main(words, prog_name="callboard", standalone_mode=False, default_map=defaults)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CallboardError as error:
        print_error(error)
        sys.exit(exit_status(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        extra = None if error.name is None else extra_for(error.name)
        if error.name is None or extra is None:
            _unexpected(error)
            return
        print_error(_missing_package("this command", error.name, extra))
        sys.exit(2)
    except SyntaxError:
        if "_CALLBOARD_DEV_AGAIN" in os.environ:
            _wait_for_change()
        traceback.print_exc(limit=0)
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            _unexpected(error)
            return
        print_error(f"{error.filename or 'the output'}: {error.strerror}: free some space, and run the command again")
        _discard_output()
        sys.exit(1)
    except Exception as error:
        _unexpected(error)


def _unexpected(error: Exception) -> None:
    """Raise an unexpected error. If `dev` has just restarted, print it and wait for the next code change instead."""
    if "_CALLBOARD_DEV_AGAIN" not in os.environ:
        raise error
    _wait_for_change()


def _wait_for_change() -> None:
    """Print the current error and wait for the next code change. Used if `dev` cannot even be imported after a change."""
    from config.cli import reload

    traceback.print_exc()
    reload.wait_and_restart()
