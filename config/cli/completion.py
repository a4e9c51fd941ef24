"""`callboard completion`: let a shell complete commands, options, and arguments."""

import os
import subprocess
import sys

import rich_click as click

from runtime import CallboardError

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion_command(shell: str) -> None:
    """Print a script with which SHELL completes commands and options.

    \b
    Examples:
      callboard completion bash >> ~/.bashrc
      callboard completion fish > ~/.config/fish/completions/callboard.fish
    """
    environment = {**os.environ, "_CALLBOARD_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-m", "config.cli"], env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise CallboardError(f"{shell} cannot complete: {done.stderr.strip() or 'there is no script for it'}")
    script = done.stdout
    if shell == "bash":  # no space after FIELD=
        script = script.replace(
            "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace"
        )
    click.echo(script, nl=False)
