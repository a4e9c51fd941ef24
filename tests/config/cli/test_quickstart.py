"""What `dev` and `up` say before they start."""

import pytest

from config.cli.quickstart import warn_if_public
from config.settings import Settings
from gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("127.0.0.2", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("10.0.0.5", True), ("dev.lan", True)],
)  # fmt: skip
def test_a_development_system_that_others_can_reach_is_warned_about(
    host: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_if_public(Settings(gateway=GatewaySettings(host=host)))
    assert (f"warning: gateway.host={host} lets other machines" in capsys.readouterr().err) == warned
