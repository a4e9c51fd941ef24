"""Fake identities are accepted as real ones are."""

from datetime import UTC, datetime, timedelta
from typing import Any

from runtime import ManualClock
from runtime.identity import Key, Keys, KeySet, RevokedSessions, TokenSettings, Verifier
from runtime.metrics import Metrics
from runtime.testing import FakeAuth
from tests.runtime.test_identity import base64url


async def answer(request: Any) -> Any:
    if not isinstance(request, KeySet):
        return RevokedSessions(0, ())
    return Keys((Key("fake", base64url(FakeAuth._signing_key().public_key().public_bytes_raw())),))


async def test_a_token_is_accepted_by_a_node_whose_manual_clock_has_stood_still() -> None:
    clock = ManualClock(datetime.now(UTC) - timedelta(seconds=50))
    verifier = Verifier(TokenSettings(), clock, Metrics(), answer)
    assert (await verifier.verify(FakeAuth.token("ann", "rider"))).subject == "ann"
