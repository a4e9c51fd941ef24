"""Helpers for the tests of the MQTT transport: ways to end a broker, and `Echo` in a separate process."""

import signal
from pathlib import Path

from tests.broker import Broker
from tests.system.process import Callboard


async def kill(broker: Broker) -> None:
    await broker.stop(signal.SIGKILL)


async def stop(broker: Broker) -> None:
    await broker.stop()


PERSISTENT = ("allow_anonymous true", "persistence true", "autosave_interval 1", "autosave_on_changes true")


def echo_process(folder: Path, broker: Broker, **more: str) -> Callboard:
    """Return the command that runs `Echo` in a separate process."""
    return Callboard(
        folder, "run", "echo",
        CALLBOARD_SERVICES="tests.transports.mqtt.echo:Echo", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=broker.url, **more,
    )  # fmt: skip
