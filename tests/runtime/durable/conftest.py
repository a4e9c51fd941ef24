"""Fixtures for the tests of streams and subscriptions."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.databases import ENGINES
from tests.runtime.durable.replicas import BatchingSubscriber, Replicas, Subscriber


@pytest.fixture(params=[ENGINES[0], pytest.param(ENGINES[1], marks=pytest.mark.long)])
def engine(request: pytest.FixtureRequest) -> str:
    """Each database engine in turn. The modules for which it matters most run on both every time."""
    chosen: str = request.param
    return chosen


@pytest.fixture
async def replicas(tmp_path: Path, engine: str) -> AsyncGenerator[Replicas, None]:
    created = Replicas(tmp_path, engine)
    Subscriber.failures.clear()
    Subscriber.ids.clear()
    Subscriber.times.clear()
    try:
        yield created
    finally:
        Subscriber.failures.clear()
        await created.close()


@pytest.fixture(params=[Subscriber, BatchingSubscriber], ids=["one by one", "batched"])
def subscriber_class(request: pytest.FixtureRequest) -> type[Subscriber]:
    chosen: type[Subscriber] = request.param
    return chosen
