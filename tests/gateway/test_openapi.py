"""The OpenAPI document is valid, exact, and true."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.specs.openapi import checks

from config import compose
from gateway.openapi import document
from tests.system_under_test import System, open_system, settings


@pytest.fixture(scope="module")
def doc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    chosen = settings(tmp_path_factory.mktemp("data"))
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document("Callboard", "0", compose.manifests(chosen))))
    return made


def test_it_is_valid(doc: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(doc).validate()


def test_it_names_every_route(doc: dict[str, Any]) -> None:
    routes = sorted(f"{method.upper()} {path}" for path, methods in doc["paths"].items() for method in methods)
    assert routes == [
        "DELETE /sessions/current", "GET /notices", "GET /rides", "GET /rides/{id}", "GET /scooters", "GET /scooters/{id}", "GET /users/me",
        "GET /wallet", "GET /wallet/entries", "PATCH /users/{id}", "POST /rides", "POST /rides/{id}/end", "POST /scooters", "POST /sessions",
        "POST /sessions/refresh", "POST /users", "POST /users/me/password", "POST /wallet/top-ups",
    ]  # fmt: skip


def test_it_is_exact(doc: dict[str, Any]) -> None:
    top_up = doc["paths"]["/wallet/top-ups"]["post"]
    body = top_up["requestBody"]["content"]["application/json"]["schema"]
    assert body == {
        "type": "object", "properties": {"amount_cents": {"type": "integer", "minimum": 1, "maximum": 1_000_000}},
        "required": ["amount_cents"], "additionalProperties": False,
    }  # fmt: skip
    assert top_up["security"] == [{"bearer": []}]
    assert [parameter["name"] for parameter in top_up["parameters"]] == ["Idempotency-Key"]
    assert set(top_up["responses"]) == {"201", "400", "401", "403", "409", "413", "415", "422", "429", "500", "502", "503", "504"}
    assert doc["paths"]["/sessions"]["post"]["security"] == []
    entries = doc["paths"]["/wallet/entries"]["get"]["parameters"]
    assert entries == [
        {"name": "cursor", "in": "query", "required": False, "schema": {"type": "string", "format": "uuid"}},
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 50},
        },
    ]
    taken = doc["paths"]["/users"]["post"]["responses"]["409"]["content"]["application/problem+json"]["schema"]
    assert taken["allOf"][1]["properties"]["code"] == {"const": "email-taken"}
    for name, schema in doc["components"]["schemas"].items():
        if name != "Problem" and schema.get("type") == "object":
            assert schema["additionalProperties"] is False, name


async def test_what_is_served_is_what_is_printed(system: System, doc: dict[str, Any]) -> None:
    assert (await system.client.get("/openapi.json")).json() == doc


async def test_schemathesis_finds_no_5xx_and_no_answer_outside_the_document(tmp_path: Path) -> None:
    """Each operation, with generated input that fits and that does not, with a rider's, an admin's and no token."""
    from anyio import to_thread

    async with open_system(settings(tmp_path, rate=0)) as system:
        schema: Any = schemathesis.openapi.from_dict((await system.client.get("/openapi.json")).json())
        schema.config.base_url = system.url
        tried = 0
        tokens = [await system.bearer("rider@example.com"), await system.bearer("admin@example.com"), {}]
        for headers in tokens:
            for result in schema.get_all_operations():
                tried += await to_thread.run_sync(_try, result.ok(), headers)
    assert tried > 200


_CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def _try(operation: Any, headers: dict[str, str]) -> int:
    from hypothesis import given

    if operation.path == "/sessions/current":
        return 0  # it would end the session that the others need; its own test is in test_auth.py

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
