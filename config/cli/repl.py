"""`callboard repl`: a prompt for the commands that look into a running system."""

import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich_click as click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from config.cli.client import Client, with_gateway
from config.cli.common import loaded, with_config
from config.cli.main import cli, run_command
from config.cli.output import print_error
from config.settings import Settings

_ELSEWHERE = ("new", "dev", "run", "up", "bench", "completion", "repl")
"""Commands that create or run something. They need a separate shell."""
_END = ("exit", "quit")


@click.command("repl")
@with_gateway
@with_config
def repl_command(url: str, email: str | None, roles: tuple[str, ...], config_file: Path | None) -> None:
    """Type commands at a prompt, without `callboard`: `call`, `tail`, `services`, `streams`, and all others that need a running system.

    Tab completes, and the history is kept in the database folder, except for lines that begin with a space. Ctrl-C ends the
    command that runs, and Ctrl-D the prompt. The options of this command hold for all commands. If standard input is not a
    terminal, each of its lines is a command, and the exit status is that of the last one.

    \b
    Examples:
      callboard repl --as operator@example.com
      echo services | callboard repl
    """
    settings = loaded(config_file).settings
    given = {"url": url, "email": email, "roles": roles, "config_file": config_file}
    commands = _Commands({name: value for name, value in given.items() if value})
    if sys.stdin.isatty():
        _ask(commands, settings, Client(settings, url, email).url)
        return
    status = 0
    for line in sys.stdin:
        if line.strip() in _END:
            break
        status = commands.run(line)
    sys.exit(status)


def _ask(commands: "_Commands", settings: Settings, url: str) -> None:
    """Read and run commands until Ctrl-D."""
    click.echo(f"Commands for {url}: Tab completes, `help` lists them, Ctrl-D ends.")
    session: PromptSession[str] = PromptSession(
        "callboard> ", history=_history(settings), completer=_CommandCompleter(commands), complete_while_typing=False
    )
    while True:
        try:
            line = session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line.strip() in _END:
            return
        commands.run(line)


def _history(settings: Settings) -> History:
    file = Path(settings.database.folder) / "repl_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)  # commands may contain passwords
    except OSError:
        return InMemoryHistory()
    return _VisibleHistory(file)


class _VisibleHistory(FileHistory):
    """Does not store lines that begin with a space, as shells do."""

    def store_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().store_string(string)


class _Commands:
    """Runs lines with commands.

    Args:
        defaults: values of options for all commands, by the names of their parameters.
    """

    def __init__(self, defaults: dict[str, Any]) -> None:
        self._defaults = defaults
        self.names: list[str] = [name for name in cli.list_commands(click.Context(cli)) if name not in _ELSEWHERE]

    def run(self, line: str) -> int:
        """Run a command, and return its exit status. Neither an error nor Ctrl-C ends more than the command."""
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            print_error(f"{error}: {line.strip()}")
            return 2
        words = words[1:] if words[:1] == ["callboard"] else words
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        if not words:
            return 0
        if words[0] in _ELSEWHERE:
            print_error(f"run `callboard {words[0]}` in another shell")
            return 2
        try:
            run_command(words, self.defaults_of(words[0]))
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except KeyboardInterrupt:
            return 130
        except Exception:  # a fault in one command must not end the prompt
            traceback.print_exc()
            return 1
        return 0

    def defaults_of(self, name: str) -> dict[str, Any]:
        """Return the defaults for a command, and for its subcommands."""
        command = cli.get_command(click.Context(cli), name)
        below = command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ()
        return {name: {**self._defaults, **dict.fromkeys(below, self._defaults)}}

    def complete(self, words: list[str], incomplete: str) -> Iterator[str]:
        """Yield what the next word may be, after some words of a command."""
        if not words:
            yield from (name for name in (*self.names, "help", "exit") if name.startswith(incomplete))
            return
        context = click.Context(cli, info_name="callboard", resilient_parsing=True, default_map=self.defaults_of(words[0]))
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words[0])
            if found is None:
                return
            command, name = found, words[0]
            words = words[1:]
            context = command.make_context(name, list(words), parent=context, resilient_parsing=True)
        source = _completed(command, context, words, incomplete)
        yield from (item.value for item in source.shell_complete(context, incomplete))


def _completed(
    command: click.Command, context: click.Context, words: list[str], incomplete: str
) -> click.Command | click.Parameter:
    """Return what knows the next word: an option, an argument, or the command, for its options and subcommands."""
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag and words and words[-1] in option.opts:
            return option
    if not incomplete.startswith("-"):
        for argument in command.params:
            if isinstance(argument, click.Argument) and (argument.nargs == -1 or context.params.get(argument.name or "") is None):
                return argument
    return command


class _CommandCompleter(Completer):
    """Completes commands when Tab is pressed."""

    def __init__(self, commands: _Commands) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before, _, incomplete = document.text_before_cursor.rpartition(" ")
        try:
            words = shlex.split(before)
        except ValueError:  # within quotes
            return
        for word in self._commands.complete(words, incomplete):
            yield Completion(word, start_position=-len(incomplete))
