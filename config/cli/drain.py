"""`callboard drain`: let one node of a running system finish its work and stop."""

import difflib
import time
from urllib.parse import quote

import rich_click as click

from config.cli.client import describe_problem
from config.cli.operator import Operator, with_operator
from config.cli.output import progress
from runtime import CallboardError


@click.command("drain")
@click.argument("node")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait until it has stopped."
)
@with_operator
def drain_command(node: str, timeout: float, operator: Operator) -> None:
    """Let NODE finish its work and stop, as SIGTERM does, and wait until the gateway does not see it any more.

    `callboard services` shows the nodes. The process ends with status 0. Whether it is started again is up to what runs it:
    `up` and Kubernetes do so, systemd units and compose files of `callboard deploy` do not.

    \b
    Examples:
      callboard drain rides-4f0c2ab1d9e8
    """
    nodes = _nodes(operator)
    if node not in nodes:
        near = difflib.get_close_matches(node, nodes, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CallboardError(f"no node {node!r} is running: {hint}choose from {', '.join(sorted(nodes))}")
    status, answer = operator.client().ask("POST", f"/console/nodes/{quote(node, safe='')}/drain", b"{}")
    if status != 202:
        raise CallboardError(describe_problem(status, answer))
    until = time.monotonic() + timeout
    with progress(f"{node} finishes its work"):
        while _still_runs(operator, node):
            if time.monotonic() >= until:
                raise CallboardError(f"{node} is still finishing its work after {timeout:g} s: wait, or end its process")
            time.sleep(0.2)  # the gateway can only be asked again
    click.echo(f"{node} has stopped.")


def _nodes(operator: Operator) -> set[str]:
    return {str(row.get("node")) for row in operator.instances()}


def _still_runs(operator: Operator, node: str) -> bool:
    try:
        return node in _nodes(operator)
    except CallboardError:
        return False  # it was the node of the gateway
