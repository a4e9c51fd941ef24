"""Fixtures for the tests of streams and subscriptions."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.runtime.durable.replicas import BatchingSubscriber, Replicas, Subscriber


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncGenerator[Replicas, None]:
    created = Replicas(tmp_path)
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
