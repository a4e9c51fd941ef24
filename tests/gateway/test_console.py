"""The console: what operators see of streams and dead letters, and repair, through the gateway."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest

from runtime import Allow, Database, Forbidden
from runtime.durable.console import MOST_LETTERS, DropDeadLetters, console
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import eventually
from services.wallet.service import Wallet
from tests.gateway.environment import check_problem
from tests.system_under_test import System

LETTER = "INSERT INTO callboard_dead_letters (publisher, epoch, seq, event_id, type, body, at, trace, attempts, error) VALUES ('auth', 'e', $1, $2, 'auth.UserRegistered', $3, '2026-11-30T00:00:00.000000Z', '', 5, 'KeyError()')"


async def ask(system: System, name: str, service: str = "wallet", **fields: object) -> object:
    operator = await system.bearer("operator@example.com")
    answer = await system.client.post(f"/console/services/{service}/{name}", json=fields, headers=operator)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_operator_sees_how_far_each_service_has_applied_the_streams(deployment: System) -> None:
    async def caught_up() -> bool:
        report = await ask(deployment, "ShowStreams")
        assert isinstance(report, dict)
        assert (report["service"], report["head"], report["oldest"]) == ("wallet", 0, 1)
        found = {one["publisher"]: (one["seq"], one["head"], one["state"]) for one in report["subscriptions"]}
        return found == {"auth": (3, 3, "WAITING"), "rides": (0, 0, "WAITING")}

    await eventually(caught_up, "the wallet has applied the three users")


@pytest.mark.parametrize("path", ["services/wallet/ShowStreams", "services/wallet/DropDeadLetters", "nodes/any/drain"])
async def test_nobody_but_operators_may_look_or_repair(system: System, path: str) -> None:
    check_problem(await system.client.post(f"/console/{path}", json={}), 401, "unauthenticated")
    check_problem(await system.client.post(f"/console/{path}", json={}, headers=await system.bearer()), 403, "forbidden")


async def test_requests_that_no_service_answers_are_refused(system: System) -> None:
    operator = await system.bearer("operator@example.com")
    for path, body, status, code in (
        ("services/wallet/Nothing", {}, 404, "not-found"),
        ("services/wallet/Drain", {}, 404, "not-found"),
        ("services/nothing/ShowStreams", {}, 404, "no-instance"),
        ("nodes/nothing/drain", {}, 404, "no-node"),
        ("services/wallet/ResumeStream", {}, 422, "invalid"),
        ("services/wallet/ResumeStream", {"publisher": "rides", "skip_to": 0}, 422, "invalid"),
        ("services/wallet/ResumeStream", {"publisher": "rides"}, 409, "refused"),
        ("services/wallet/ResumeStream", {"publisher": "moon"}, 409, "refused"),
        ("services/wallet/ForgetReader", {"reader": "moon"}, 409, "refused"),
        ("services/wallet/ListDeadLetters", {"limit": MOST_LETTERS + 1}, 422, "invalid"),
        ("services/wallet/ShowDeadLetter", {"id": "moon"}, 409, "refused"),
    ):
        check_problem(await system.client.post(f"/console/{path}", json=body, headers=operator), status, code)


async def test_another_service_cannot_ask_for_what_operators_may(system: System) -> None:
    wallet = system.nodes[0].inbound.instances["wallet"]
    for_operators = {name: endpoint for name, endpoint in wallet.endpoints.items() if name.startswith("console.")}
    assert len(for_operators) == len(console.messages)
    assert {endpoint.handler.allow for endpoint in for_operators.values()} == {Allow(services=("gateway",))}
    with pytest.raises(Forbidden):
        await system.nodes[0].inbound.instances["rides"].ask("wallet", DropDeadLetters(("a",)))


async def test_dead_letters_are_shown_retried_and_dropped(deployment: System) -> None:
    async with wallet_database(deployment) as database:
        await check_dead_letters(deployment, database)


@asynccontextmanager
async def wallet_database(system: System) -> AsyncGenerator[Database, None]:
    if system.nodes:
        yield system.service(Wallet).db
        return
    database = SqliteDatabase(system.folder / "wallet.sqlite")
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def check_dead_letters(deployment: System, database: Database) -> None:
    good = msgspec.json.encode({"user_id": "late", "role": "rider"}).decode()
    for seq, id, body in ((1, "a", good), (2, "b", '{"user_id":7}'), (3, "c", good.replace("late", "other"))):
        await database.execute(LETTER, seq, id, body)
    page = await ask(deployment, "ListDeadLetters", limit=2)
    assert isinstance(page, dict)
    assert [item["id"] for item in page["items"]] == ["a", "b"]
    assert page["next"] == "b"
    rest = await ask(deployment, "ListDeadLetters", limit=2, after="b")
    assert isinstance(rest, dict)
    assert ([item["id"] for item in rest["items"]], rest["next"]) == (["c"], "")
    shown = await ask(deployment, "ShowDeadLetter", id="a")
    assert isinstance(shown, dict)
    assert (shown["body"], shown["error"]) == (good, "KeyError()")
    assert await ask(deployment, "RetryDeadLetter", id="a") == {"error": "", "found": True}
    assert await ask(deployment, "RetryDeadLetter", id="a") == {"error": "", "found": False}
    assert await database.fetch_one("SELECT user_id FROM accounts WHERE user_id = 'late'") is not None, "it was applied"
    failed = await ask(deployment, "RetryDeadLetter", id="b")
    assert isinstance(failed, dict)
    assert "user_id" in failed["error"]
    left = await database.fetch("SELECT event_id, attempts FROM callboard_dead_letters ORDER BY event_id")
    assert [(row["event_id"], row["attempts"]) for row in left] == [("b", 5), ("c", 5)], (
        "no version that can decode it has tried it"
    )
    metrics = [node.metrics for node in deployment.nodes if node.service(Wallet) is not None]
    for one in metrics:
        assert one.value("dead_letters_waiting", service="wallet", publisher="auth") == 2
    assert await ask(deployment, "DropDeadLetters", ids=["b", "c", "unknown"]) == {"count": 2}
    assert await ask(deployment, "ListDeadLetters") == {"items": [], "next": ""}
    for one in metrics:
        assert one.value("dead_letters_waiting", service="wallet", publisher="auth") == 0
