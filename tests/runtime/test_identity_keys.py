"""The key set of a verifier: how often it is requested, whatever tokens come."""

import asyncio
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import ManualClock, ServiceError, TokenSettings, Unauthenticated
from runtime.contract.errors import Unreachable
from runtime.identity import Key, Keys, KeySet, RevokedSessions, Verifier
from runtime.metrics import Metrics
from runtime.testing import FakeAuth


def forged(kid: str) -> str:
    return jwt.encode({}, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"typ": "at+jwt", "kid": kid})


class TestClock(ManualClock):
    """A clock whose monotonic time moves only when a test advances it, like its time of day."""

    __test__ = False
    elapsed = 100.0

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, delta: timedelta) -> None:
        super().advance(delta)
        self.elapsed += delta.total_seconds()


class Auth:
    """Answers the verifier's requests, or fails if it is down."""

    def __init__(self) -> None:
        self.down = True
        self.asked = 0
        self.keys: tuple[Key, ...] = ()
        self.clock = TestClock()
        self.verifier = Verifier(TokenSettings(), self.clock, Metrics(), self.answer)

    async def answer(self, request: Any) -> Any:
        if not isinstance(request, KeySet):
            return RevokedSessions(0, ())
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise Unreachable("auth")
        return Keys(self.keys)

    async def outcomes(self, tokens: list[str]) -> set[type[Any]]:
        answers = await asyncio.gather(*(self.verifier.verify(token) for token in tokens), return_exceptions=True)
        return {type(answer) for answer in answers}


@pytest.mark.parametrize("known", [False, True])
async def test_many_forged_tokens_cause_one_request_for_keys_while_auth_is_down(known: bool) -> None:
    auth = Auth()
    if known:
        auth.down, auth.keys = False, (Key("old", "A" * 43),)
        await auth.verifier.own_keys.learn()
        auth.clock.advance(timedelta(seconds=60))
        auth.down, auth.asked = True, 0
    tokens = [forged(f"key-{number}") for number in range(100)]
    assert await auth.outcomes(tokens) == {Unreachable}, "a retry is worth while: auth may know the key"
    for token in tokens:
        with pytest.raises(ServiceError):
            await auth.verifier.verify(token)
    assert auth.asked == 1


async def test_a_cancelled_request_for_keys_counts_and_the_others_get_an_error() -> None:
    auth = Auth()
    first = asyncio.create_task(auth.verifier.verify(forged("a")))
    while not auth.asked:
        await asyncio.sleep(0)
    first.cancel()
    assert await auth.outcomes([forged("b")]) == {Unreachable}
    assert auth.asked == 1


async def test_a_new_key_is_known_seconds_after_forged_tokens() -> None:
    auth = Auth()
    await auth.outcomes([forged("a")])
    auth.down = False
    auth.keys = (await FakeAuth().key_set(KeySet(), None)).keys  # type: ignore[arg-type]  # the context is not used
    auth.clock.advance(timedelta(seconds=2))
    assert (await auth.verifier.verify(FakeAuth.token("u1", "rider"))).subject == "u1"
    assert auth.asked == 2
    assert await auth.outcomes([forged("c")]) == {Unauthenticated}
    auth.clock.advance(timedelta(seconds=5))
    assert await auth.outcomes([forged("c"), forged("d")]) == {Unauthenticated}
    assert auth.asked == 3
