"""Versions of a service whose `once` request, reply, and error differ, on one database: for the tests of repetitions."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import ANYONE, Context, Contract, Node, NodeSettings, Request, Service, ServiceError, Struct, Transaction, handles
from runtime.contract.rest import RestParts
from runtime.node.proxy import Proxy
from runtime.storage.sqlite import SqliteFolder
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

Fields = Mapping[str, Any]
"""The fields of a type: for each its annotation, or a pair of annotation and default."""

bank = Contract("bank")


def _class(name: str, base: Any, fields: Fields, **more: Any) -> Any:
    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = __name__
        namespace["__annotations__"] = {field: kind[0] if isinstance(kind, tuple) else kind for field, kind in fields.items()}
        namespace.update({field: kind[1] for field, kind in fields.items() if isinstance(kind, tuple)}, **more)

    return types.new_class(name, (base,), {}, fill)


class Version:
    """One version of the till.

    Args:
        request: the fields of the request.
        reply: the fields of the reply, or the type of one that is no struct.
        error: the fields of the error; None for a version that does not have it.
        status: the status of the error.
        claims: whether its handlers may make requests.
    """

    def __init__(
        self,
        request: Fields,
        reply: Any,
        error: Fields | None = None,
        *,
        path: str = "POST /payments",
        status: int = 409,
        claims: bool = False,
    ) -> None:
        contract = Contract("till")
        receipt: Any = _class("Receipt", Struct, reply) if isinstance(reply, Mapping) else reply
        self.pay: Any = contract.message(_class("Pay", Request[receipt], request))
        self.declined: Any = None
        if error is not None:
            self.declined = contract.message(_class("Declined", ServiceError, error, code="declined", status=status))
        self.contract = contract
        self.answer: Any = None
        """What the handler returns or raises."""
        self.runs = 0

        async def pay(_: Any, message: Any, ctx: Context, tx: Transaction) -> Any:
            await tx.execute("SELECT 1")
            self.runs += 1
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        pay.__annotations__ |= {"message": self.pay, "return": receipt}
        raises = () if self.declined is None else (self.declined,)
        handler = handles(http=path, status=200, allow=ANYONE, once=True, raises=raises)(pay)
        definition = {"contract": contract, "calls": (bank,) if claims else (), "pay": handler}
        self.service: type[Service] = types.new_class("Till", (Service,), {}, lambda namespace: namespace.update(definition))
        self.receipt = receipt


class Tills:
    """The till, one version after another, and a node that calls it."""

    def __init__(self, folder: Path, *, zero_copy: bool = False) -> None:
        self._network = MemoryNetwork()
        self._settings = MemorySettings(zero_copy=zero_copy)
        self._databases = SqliteFolder(folder, durable=False)

    def node(self, *services: type[Service]) -> Node:
        transport = MemoryTransport(self._network, self._settings)
        return Node(services, transport, databases=self._databases, settings=NodeSettings(drain_timeout=1))

    async def rest(
        self, node: Node, path: tuple[str, ...], query: tuple[tuple[str, str], ...], body: bytes, key: str | None
    ) -> Any:
        """Make a request as the gateway does. Return the reply's text, or the data of the error."""
        proxy = Proxy(node.client("gateway", ()))
        ctx = proxy.context("id", None, None, 5)
        (route,) = [route for member in node.registry.members("till") for route in member.requests if " " in route]
        try:
            http, text = await proxy.forward(ctx, "till", route, RestParts(path, query, {}), body, key)
        except ServiceError as error:
            return error.data()
        return http.status, text
