"""Requests between services on one node."""

import pytest

from runtime import Invalid
from tests.runtime.execution.shop import Bank, Pack, Parcel, Shop, shop
from tests.topology import Topology


async def test_the_encoding_refuses_values_that_bypass_the_type_checker(one_node: Topology) -> None:
    await one_node.start(Bank, Shop)
    ctx = await one_node.client(shop)
    with pytest.raises(Invalid) as caught:
        await ctx.request(Pack(Parcel(5)))  # type: ignore[arg-type]
    assert [violation.pointer for violation in caught.value.violations] == ["/parcel/id"]
