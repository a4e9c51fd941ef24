"""Errors of handlers, as their callers see them, in every topology."""

import pytest

from runtime import SERVICES, Context, Contract, InternalError, RemoteError, Request, Service, ServiceError, handles, roles
from tests.runtime.execution.shop import Bank, Broke, Buy, Crash, Pack, Parcel, Shop, bank, shop
from tests.topology import Topology


async def test_an_error_reaches_the_caller_with_its_class_and_fields(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop, bank)
    with pytest.raises(Broke) as caught:
        await ctx.request(Buy("broke"))
    assert caught.value == Broke(5, ("save",))
    assert str(caught.value) == "There is no money (missing_cents=5, hints=('save',))"
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (402, "broke", False)


async def test_an_error_of_a_contract_that_is_not_imported_becomes_a_remote_error(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(RemoteError) as caught:
        await ctx.request(Buy("broke"))
    error = caught.value
    assert (error.contract, error.status, error.code, error.fields) == (
        "bank",
        402,
        "broke",
        {"missing_cents": 5, "hints": ["save"]},
    )


async def test_a_crash_in_a_handler_fails_only_that_request_and_reveals_no_detail(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(InternalError) as caught:
        await ctx.request(Crash())
    assert len(caught.value.incident) == 16
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert await ctx.request(Pack(Parcel("next"))) == Parcel("outer", ("packed",), Parcel("next"))
    assert topology.node_of("shop").metrics.value("incidents_total", service="shop") == 1


careless = Contract("careless")


@careless.message
class Spilt(ServiceError):
    """It is on the floor."""

    code, status = "spilt", 409


@careless.message
class Spill(Request[None]):
    pass


class Careless(Service):
    contract = careless

    @handles(allow=roles("rider") | SERVICES)
    async def spill(self, message: Spill, ctx: Context) -> None:
        raise Spilt


async def test_an_undeclared_error_is_logged_once(one_node: Topology, caplog: pytest.LogCaptureFixture) -> None:
    await one_node.start(Careless)
    ctx = await one_node.client(careless)
    for _ in range(3):
        with pytest.raises(Spilt):
            await ctx.request(Spill())
    logged = [record.getMessage() for record in caplog.records if "raises=" in record.getMessage()]
    assert logged == [
        "Careless.spill raised Spilt, which its raises= does not name: add it, so that callers and OpenAPI know of it"
    ]
