"""The help of every command has examples that work."""

import inspect
import re
import shlex

import pytest
import rich_click as click
from click.testing import CliRunner

from config.cli.main import cli
from tests.config.cli.commands import commands

COMMANDS = {words: command for words, command in commands().items() if not command.hidden}


def examples(command: click.Command) -> list[str]:
    _, _, block = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    return [line.strip() for line in block.split("\n\n")[0].splitlines() if line.strip()]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_examples(words: str) -> None:
    found = examples(COMMANDS[words])
    assert 1 <= len(found) <= 3
    for line in found:
        assert words.rsplit(maxsplit=1)[-1] in line.split()
        assert_parses(line)
    shown = CliRunner().invoke(cli, [*words.split(), "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert re.search(r"\n *Examples:\s*\n", shown.output)
    assert all(line in shown.output for line in found), "each is on a separate line"


def assert_parses(line: str) -> None:
    """Check that the command of a line of shell exists, and takes its options and arguments."""
    [part] = [part for part in re.split(r" >+ | \| ", line) if "callboard " in part]
    words = shlex.split(part)
    words = words[words.index("callboard") + 1 :]
    command: click.Command = cli
    context = click.Context(cli, info_name="callboard")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, line
        command, context = found, click.Context(found, info_name=words.pop(0), parent=context)
    command.make_context(context.info_name, list(words), parent=context.parent)


@pytest.mark.parametrize(
    "line", ["callboard services --wacht", "callboard streams resum x", "callboard backup wallet", "callboard run --port 1"]
)
def test_an_example_that_does_not_work_is_found(line: str) -> None:
    with pytest.raises((AssertionError, click.ClickException)):
        assert_parses(line)
