"""A project's own form of errors: in responses, and in the OpenAPI document."""

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from msgspec import Meta
from openapi_spec_validator import validate

from config import compose
from config.load import load
from gateway.errors import ErrorRenderer, ErrorReport
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import (
    ANYONE,
    CallboardError,
    Context,
    Contract,
    Node,
    NodeSettings,
    Request,
    Service,
    ServiceError,
    Struct,
    handles,
    roles,
)
from runtime.testing import FakeAuth
from transports.memory import MemoryTransport

shop = Contract("shop")


@shop.message
class SoldOut(ServiceError):
    """There is none left."""

    code, status = "sold-out", 409
    item: str


class NewOrder(Struct):
    item: str
    count: Annotated[int, Meta(ge=1)]


@shop.message
class Order(Request[None]):
    order: NewOrder


@shop.message
class Secrets(Request[None]):
    pass


class Shop(Service):
    contract = shop

    @handles(http="POST /orders", allow=ANYONE, raises=(SoldOut,))
    async def order(self, message: Order, ctx: Context) -> None:
        if message.order.item == "bug":
            raise RuntimeError("secret detail")
        raise SoldOut(message.order.item)

    @handles(http="GET /secrets", allow=roles("admin"))
    async def secrets(self, message: Secrets, ctx: Context) -> None:
        pass


class Texts(Struct):
    body: tuple[str, ...]


class ShopError(Struct):
    errors: Texts


class ShopErrors(ErrorRenderer):
    """Errors are lists of texts."""

    def render(self, error: ErrorReport) -> ShopError:
        if error.code == "not-found":
            raise RuntimeError("a bug in the renderer")
        fields = f" {error.fields}" if error.fields else ""
        return ShopError(Texts(tuple(f"{text}{fields}" for text in error.texts)))


class Untyped(ErrorRenderer):
    def render(self, error: ErrorReport):  # type: ignore[no-untyped-def]  # the mistake under test
        return ShopError(Texts(()))


class Waiting(ErrorRenderer):
    async def render(self, error: ErrorReport) -> ShopError:  # type: ignore[override]  # the mistake under test
        return ShopError(Texts(()))


class Nameless(ShopErrors):
    media_type = "json"


class Demanding(ShopErrors):
    def __init__(self, needed: int) -> None:
        pass


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    gateway = Gateway(GatewaySettings(port=0), errors=ShopErrors())
    async with Node([FakeAuth, Shop, lambda: gateway], MemoryTransport(), settings=NodeSettings(drain_timeout=1)) as node:
        await node.registry.wait_for("shop", "auth")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", verify=False) as made:
            yield made


def texts(answer: httpx.Response, status: int) -> list[str]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    assert answer.headers["x-request-id"]
    assert set(answer.json()) == {"errors"}
    found: list[str] = answer.json()["errors"]["body"]
    return found


async def test_every_error_has_the_projects_form(client: httpx.AsyncClient) -> None:
    """Those of services, of validation, of authorization, of the gateway itself, and failures."""
    order = {"order": {"item": "a", "count": 0}}
    assert texts(await client.post("/orders", json=order), 422) == ["order.count: Expected `int` >= 1"]
    assert texts(await client.post("/orders", json={"order": {"item": "a", "count": 1}}), 409) == [
        "There is none left {'item': 'a'}"
    ]
    (failure,) = texts(await client.post("/orders", json={"order": {"item": "bug", "count": 1}}), 500)
    assert "secret" not in failure
    assert re.search(r"\([0-9a-f]{16}\)", failure), "the id under which the log has the details"
    assert texts(await client.post("/orders", content="{"), 415)
    assert texts(await client.post("/orders", content="{", headers={"Content-Type": "application/json"}), 400)
    refused = await client.get("/secrets")
    assert texts(refused, 401)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert texts(await client.get("/secrets", headers={"Authorization": f"Bearer {FakeAuth.token('u1', 'rider')}"}), 403)
    assert texts(await client.put("/orders"), 405) == ["This path allows OPTIONS, POST."]
    assert texts(await client.get("/console/services"), 401)
    assert texts(await client.get("/orders", headers={"Host": "a b"}), 400)


async def test_an_error_that_cannot_be_rendered_is_a_problem_document(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "ShopErrors has failed to render not-found" in caplog.text


async def test_the_document_describes_it(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    validate(document)
    assert document["info"]["description"] == "Errors are lists of texts."
    assert set(document["components"]["schemas"]) == {"errors.ShopError", "errors.Texts", "shop.NewOrder"}
    for status, response in document["paths"]["/orders"]["post"]["responses"].items():
        if int(status) >= 400:
            assert response["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/errors.ShopError"}}}


def test_a_setting_names_the_class(tmp_path: Path) -> None:
    settings = load(None, {"CALLBOARD_GATEWAY__ERRORS": f"{__name__}:ShopErrors"}).settings
    assert isinstance(compose.error_renderer(settings), ErrorRenderer)
    assert compose.error_renderer(load(None, {}).settings) is None


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere:Errors", "there is no module nowhere"),
        (f"{__name__}:ShopErrrs", "did you mean"),
        (f"{__name__}:Shop", "is not a subclass of ErrorRenderer"),
        (f"{__name__}:Demanding", "made without arguments"),
        (f"{__name__}:Untyped", "annotate the struct that it returns"),
        (f"{__name__}:Waiting", "not `async def`"),
        (f"{__name__}:Nameless", "media_type='json'"),
        ("errors", "expected package.module:Class"),
    ],
)
def test_a_class_that_cannot_render_is_refused_at_the_start(path: str, text: str) -> None:
    with pytest.raises(CallboardError, match=text):
        compose.error_renderer(load(None, {"CALLBOARD_GATEWAY__ERRORS": path}).settings)
