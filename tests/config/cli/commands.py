"""All commands, for tests that hold for each of them."""

from collections.abc import Iterator

import rich_click as click

from config.cli.main import cli


def commands() -> dict[str, click.Command]:
    """Return every command by its words, those that have subcommands included: `services`, `dead-letters`, `dead-letters list`."""
    context = click.Context(cli, info_name="callboard")
    return dict(_below(cli, context, ""))


def _below(group: click.Group, context: click.Context, words: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield f"{words}{name}", command
        if isinstance(command, click.Group):
            yield from _below(command, click.Context(command, parent=context), f"{words}{name} ")
