"""`callboard keys`: show, rotate, and retire the keys that sign access tokens."""

from typing import Any, cast
from urllib.parse import quote

import rich_click as click

from config.cli.client import describe_problem
from config.cli.common import with_json
from config.cli.operator import Operator, with_operator
from config.cli.output import json_text, table
from runtime import CallboardError

_PATH = "/console/keys"
_COLUMNS = ("kid", "state", "signs_from", "retires")


@click.group("keys")
def keys_command() -> None:
    """Show, rotate, and retire the keys that sign access tokens, in a running system with Callboard's auth service.

    Only admins may do that. If `dev` or `up` runs in this folder, no login is needed.

    \b
    Examples:
      callboard keys list
      callboard keys rotate --url https://rental.example --as admin@example.com
    """


@keys_command.command("list")
@with_json
@with_operator
def list_command(as_json: bool, operator: Operator) -> None:
    """Show the keys: the one that signs, one that is published and signs later, and those that still verify older tokens.

    \b
    Examples:
      callboard keys list --json
    """
    _show(_ask(operator, "GET", _PATH, 200), as_json)


@keys_command.command("rotate")
@with_json
@with_operator
def rotate_command(as_json: bool, operator: Operator) -> None:
    """Publish a new key. It signs a minute later, when every service knows it, and no request is refused.

    \b
    Examples:
      callboard keys rotate
    """
    _show(_ask(operator, "POST", _PATH, 201), as_json)


@keys_command.command("retire")
@click.argument("kid")
@with_operator
def retire_command(kid: str, operator: Operator) -> None:
    """Retire the key KID at once, because somebody else may know it. Another key signs from now on.

    Access tokens that KID has signed are refused within half a minute. Their users refresh them, or log in again.

    \b
    Examples:
      callboard keys retire uKq3mZ0sJ1aXbT7e
    """
    _ask(operator, "DELETE", f"{_PATH}/{quote(kid, safe='')}", 200)
    click.echo(f"{kid} has retired.")


def _ask(operator: Operator, method: str, path: str, expected: int) -> dict[str, Any]:
    status, answer = operator.client().ask(method, path, b"{}" if method == "POST" else None)
    if status != expected:
        raise CallboardError(describe_problem(status, answer))
    return answer


def _show(answer: dict[str, Any], as_json: bool) -> None:
    rows = cast(list[dict[str, Any]], answer.get("items", []))
    if as_json:
        for row in rows:
            click.echo(json_text(row))
        return
    table([{name: str(row.get(name) or "-") for name in _COLUMNS} for row in rows], as_json=False)
