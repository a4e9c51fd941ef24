"""`callboard completion`: let a shell complete commands, options, and arguments."""

import os
import subprocess
import sys

import rich_click as click

from runtime import CallboardError

_SHELLS = ("bash", "zsh", "fish")
_WITHOUT_SPACE = {
    "bash": ("COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace"),
    "zsh": (
        "compadd -U -V unsorted -a completions",
        "local -a fields=(${(M)completions:#*=}) others=(${completions:#*=})\n"
        "        compadd -U -V unsorted -S '' -a fields\n"
        "        compadd -U -V unsorted -a others",
    ),
}
"""What is replaced in the scripts of click, and by what, so that no space follows `FIELD=`. In fish, none does."""


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion_command(shell: str) -> None:
    """Print a script with which SHELL completes commands and options.

    \b
    Examples:
      callboard completion bash >> ~/.bashrc
      callboard completion zsh >> ~/.zshrc
      callboard completion fish > ~/.config/fish/completions/callboard.fish
    """
    environment = {**os.environ, "_CALLBOARD_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-m", "config.cli"], env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise CallboardError(f"{shell} cannot complete: {done.stderr.strip() or 'there is no script for it'}")
    old, new = _WITHOUT_SPACE.get(shell, ("", ""))
    click.echo(done.stdout.replace(old, new) if old else done.stdout, nl=False)
