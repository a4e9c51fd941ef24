"""The OpenAPI document is valid, exact, and matches what the gateway answers."""

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.specs.openapi import checks

from config import compose
from gateway.openapi import document
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node
from runtime.contract.text_forms import UUID_TEXT
from runtime.testing import FakeAuth
from tests.gateway.library import Library
from tests.system_under_test import System, open_system, settings
from transports.memory import MemoryNetwork, MemoryTransport


@pytest.fixture(scope="module")
def doc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    chosen = settings(tmp_path_factory.mktemp("data"))
    generated: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document("Callboard", "0", compose.manifests(chosen))))
    return generated


def test_the_document_is_valid_openapi_3_1(doc: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(doc).validate()


def test_the_document_names_every_route(doc: dict[str, Any]) -> None:
    assert {"/live", "/live/tickets"} <= doc["paths"].keys(), "the gateway's own"
    doc = {**doc, "paths": {path: methods for path, methods in doc["paths"].items() if not path.startswith("/live")}}
    routes = sorted(f"{method.upper()} {path}" for path, methods in doc["paths"].items() for method in methods)
    assert routes == [
        "DELETE /sessions/current", "GET /notices", "GET /rides", "GET /rides/{id}", "GET /scooters", "GET /scooters/{id}", "GET /users/me",
        "GET /wallet", "GET /wallet/entries", "PATCH /users/{id}", "POST /rides", "POST /rides/{id}/end", "POST /scooters", "POST /sessions",
        "POST /sessions/refresh", "POST /users", "POST /users/me/password", "POST /wallet/top-ups",
    ]  # fmt: skip


def test_the_document_describes_the_events_of_live(doc: dict[str, Any]) -> None:
    events = doc["paths"]["/live"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]["anyOf"]
    names = [event["$ref"].rpartition("/")[2] for event in events]
    assert names == ["notices.Notice", "LiveGap", "LiveEnd"]
    assert doc["components"]["schemas"]["notices.Notice"]["properties"]["number"]["type"] == "integer"
    assert doc["paths"]["/live"]["get"]["security"] == [{}, {"bearer": []}], "a ticket takes the place of a token"
    assert doc["paths"]["/live/tickets"]["post"]["security"] == [{"bearer": []}]


def test_the_document_describes_parameters_bodies_and_errors_exactly(doc: dict[str, Any]) -> None:
    top_up = doc["paths"]["/wallet/top-ups"]["post"]
    body = top_up["requestBody"]["content"]["application/json"]["schema"]
    assert body == {
        "type": "object", "properties": {"amount_cents": {"type": "integer", "minimum": 1, "maximum": 1_000_000}},
        "required": ["amount_cents"], "additionalProperties": False,
    }  # fmt: skip
    assert top_up["security"] == [{"bearer": []}]
    assert [parameter["name"] for parameter in top_up["parameters"]] == ["Idempotency-Key"]
    assert set(top_up["responses"]) == {"201", "400", "401", "403", "409", "413", "415", "422", "429", "500", "502", "503", "504"}
    assert doc["paths"]["/sessions"]["post"]["security"] == [{}, {"bearer": []}]
    entries = doc["paths"]["/wallet/entries"]["get"]["parameters"]
    assert entries == [
        {"name": "cursor", "in": "query", "required": False, "schema": UUID_TEXT.schema},
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 50},
        },
    ]
    taken = doc["paths"]["/users"]["post"]["responses"]["409"]["content"]["application/problem+json"]["schema"]
    assert taken == {"$ref": "#/components/schemas/auth.EmailTakenError"}
    named = doc["components"]["schemas"]["auth.EmailTakenError"]
    assert named["properties"]["code"] == {"type": "string", "enum": ["email-taken"]}  # a `const` is dropped by generators
    assert {"title", "status", "request_id", "retryable", "detail"} <= set(named["properties"])
    assert "allOf" not in named, "as is an `allOf`"
    assert doc["paths"]["/rides/{id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/rides.Ride"
    }
    for name, schema in doc["components"]["schemas"].items():
        if not name.endswith(("Problem", "Error")) and schema.get("type") == "object":
            assert schema["additionalProperties"] is False, name


async def test_types_of_every_kind_are_described_and_work() -> None:
    async with Node([FakeAuth, Library, partial(Gateway, GatewaySettings(port=0))], MemoryTransport(MemoryNetwork())) as node:
        running = node.service(Gateway)
        assert running is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", verify=False) as client:
            found: dict[str, Any] = (await client.get("/openapi.json")).json()
            OpenAPIV31SpecValidator(found).validate()
            (parameter,) = found["paths"]["/shelves/{shelfId}"]["patch"]["parameters"]
            assert parameter["name"] == "shelfId"
            body = found["paths"]["/shelves/{shelfId}"]["patch"]["requestBody"]
            assert body["required"] is False
            assert set(body["content"]["application/json"]["schema"]["properties"]) == {"newName", "underShelf"}
            schemas = found["components"]["schemas"]
            assert schemas["library.Shelf"]["properties"]["inner"]["items"] == {"$ref": "#/components/schemas/library.Shelf"}
            assert "library.Page_Shelf_" in schemas

            for sent, name in ((b"", "unset"), (b'{"newName":null}', "null"), (b'{"newName":"b"}', "b")):
                answer = await client.patch("/shelves/1", content=sent, headers={"content-type": "application/json"})
                assert (answer.status_code, answer.json()["name"]) == (200, name), answer.text
            answer = await client.patch("/shelves/1", json={"underShelf": {"name": "a", "inner": [{"name": "b"}]}})
            assert answer.json()["inner"] == [{"name": "a", "inner": [{"name": "b", "inner": []}]}]
            assert (await client.get("/shelves?firstLetter=s")).json() == {
                "items": [{"name": "s", "inner": []}],
                "nextPage": None,
            }
            twice = await client.patch(
                "/shelves/1", content=b'{"newName":"a","newName":"b"}', headers={"content-type": "application/json"}
            )
            assert (twice.status_code, twice.json()["code"]) == (400, "malformed")


async def test_the_served_document_equals_the_generated_one(system: System, doc: dict[str, Any]) -> None:
    assert (await system.client.get("/openapi.json")).json() == doc


async def test_generated_requests_get_no_5xx_and_only_documented_answers(tmp_path: Path) -> None:
    """Schemathesis calls each operation with valid and invalid input, and with a rider's token, an admin's token, and none."""
    from anyio import to_thread

    async with open_system(settings(tmp_path, rate=0)) as system:
        schema: Any = schemathesis.openapi.from_dict((await system.client.get("/openapi.json")).json())
        schema.config.base_url = system.url
        cases = 0
        tokens = [await system.bearer("rider@example.com"), await system.bearer("admin@example.com"), {}]
        for headers in tokens:
            for result in schema.get_all_operations():
                cases += await to_thread.run_sync(_call_with_generated_cases, result.ok(), headers)
    assert cases > 200


_CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def _call_with_generated_cases(operation: Any, headers: dict[str, str]) -> int:
    from hypothesis import given

    if operation.path == "/sessions/current":
        return 0  # this would end the session that the other calls need; tests/services/auth/test_sessions.py tests it
    if operation.path == "/live":
        return 0  # its answer does not end; tests/gateway/test_live.py and test_tickets.py test it

    @hypothesis_settings(
        max_examples=15,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE) | operation.as_strategy())
    def run(case: Any) -> None:
        statuses.append(1)
        case.call_and_validate(headers=headers, checks=_CHECKS)

    statuses: list[int] = []
    run()
    return len(statuses)
