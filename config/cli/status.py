"""Exit statuses: 2 if the command cannot run as configured, so that a restart does not help, and 1 for other failures."""

from runtime import CallboardError, Crashed, HandlerAborted


class NodeFailed(CallboardError):
    """A node that had started has failed. Its settings are not the reason, so that a restart may help."""


def exit_status(error: CallboardError) -> int:
    """Return the exit status of a command that ends with an error."""
    return 1 if isinstance(error, NodeFailed | Crashed | HandlerAborted) else 2
