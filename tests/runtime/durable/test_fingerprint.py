"""A keyed request is repeated after a deployment or a roll-back: it gets the first answer, whatever has changed in between."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import Invalid, KeyReused, Node, ServiceError, Struct
from runtime.durable.fingerprint import Fingerprint
from runtime.storage.sqlite import SqliteDatabase
from tests.runtime.durable.tills import Tills, Version

CENTS = {"cents": int}
NUMBER = {"number": int}


class Item(Struct):
    name: str


class NewItem(Struct):
    name: str
    count: int = 1


REQUESTS: dict[str, tuple[Any, bytes, Any, bytes]] = {
    "optional field added": (CENTS, b'{"cents":5}', CENTS | {"note": (str, "")}, b'{"cents":5,"note":"x"}'),
    "required field added": (CENTS, b'{"cents":5}', CENTS | {"currency": str}, b'{"cents":5,"currency":"EUR"}'),
    "renamed": (CENTS, b'{"cents":5}', {"amount": int}, b'{"amount":5}'),
    "widened": (CENTS, b'{"cents":5}', {"cents": int | str}, b'{"cents":"five"}'),
    "another default": (CENTS | {"note": (str, "")}, b'{"cents":5}', CENTS | {"note": (str, "none")}, b'{"cents":5}'),
    "optional field added within": (
        {"items": tuple[Item, ...]},
        b'{"items":[{"name":"x"}]}',
        {"items": tuple[NewItem, ...]},
        b'{"items":[{"name":"x","count":2}]}',
    ),
}
REPLIES: dict[str, tuple[Any, Callable[[Any], Any], Any, Callable[[Any], Any]]] = {
    "optional field added": (NUMBER, lambda cls: cls(1), NUMBER | {"note": (str, "")}, lambda cls: cls(1, "x")),
    "required field added": (NUMBER, lambda cls: cls(1), NUMBER | {"note": str}, lambda cls: cls(1, "x")),
    "renamed": (NUMBER, lambda cls: cls(1), {"id": int}, lambda cls: cls(1)),
    "widened": (NUMBER, lambda cls: cls(1), {"number": int | str}, lambda cls: cls("one")),
    "another type": (NUMBER, lambda cls: cls(1), str, lambda cls: "one"),
    "none": (NUMBER, lambda cls: cls(1), None, lambda cls: None),
}
ERRORS: dict[str, tuple[dict[str, Any], Callable[[Any], Any], dict[str, Any], Callable[[Any], Any]]] = {
    "optional field added": (
        {"error": CENTS},
        lambda cls: cls(5),
        {"error": CENTS | {"why": (str, "")}},
        lambda cls: cls(5, "x"),
    ),
    "renamed": ({"error": CENTS}, lambda cls: cls(5), {"error": {"amount": int}}, lambda cls: cls(5)),
    "another type": ({"error": CENTS}, lambda cls: cls(5), {"error": {"cents": str}}, lambda cls: cls("five")),
    "another status": ({"error": CENTS}, lambda cls: cls(5), {"error": CENTS, "status": 410}, lambda cls: cls(5)),
}
both_ways = pytest.mark.parametrize("back", [False, True], ids=["deployed", "rolled back"])


async def repeated(tills: Tills, first: Version, then: Version, body: bytes) -> None:
    """Make a request through both entrances in one version, and again in another: the second runs no handler."""
    message = msgspec.json.decode(body, type=first.pay)
    answers: list[list[Any]] = []
    async with tills.node() as caller:
        ctx = caller.client("test", (first.contract,))
        for version in (first, then):
            async with tills.node(version.service):
                await caller.registry.wait_for("till")
                answers.append([await tills.rest(caller, (), (), body, "k"), await typed(ctx, message)])
            await _until_gone(caller)
    assert answers[0] == answers[1]
    assert (first.runs, then.runs) == (2, 0)


async def typed(ctx: Any, message: Any) -> Any:
    try:
        return await ctx.request(message, key="k")
    except ServiceError as error:
        return error


async def _until_gone(caller: Node) -> None:
    while caller.registry.members("till"):
        await caller.registry.changed()


@both_ways
@pytest.mark.parametrize("claims", [False, True], ids=["calls nobody", "makes requests"])
@pytest.mark.parametrize("change", REQUESTS)
async def test_a_repetition_gets_the_first_reply_whatever_the_request_has_become(
    change: str, claims: bool, back: bool, tmp_path: Path
) -> None:
    old, old_body, new, new_body = REQUESTS[change]
    versions = [(Version(old, NUMBER, claims=claims), old_body), (Version(new, NUMBER, claims=claims), new_body)]
    (first, body), (then, _) = reversed(versions) if back else versions
    first.answer, then.answer = first.receipt(1), then.receipt(2)
    await repeated(Tills(tmp_path), first, then, body)


@both_ways
@pytest.mark.parametrize("change", REPLIES)
async def test_a_stored_reply_is_answered_as_it_was_stored(change: str, back: bool, tmp_path: Path) -> None:
    old, old_reply, new, new_reply = REPLIES[change]
    versions = [(Version(CENTS, old), old_reply), (Version(CENTS, new), new_reply)]
    (first, reply), (then, other) = reversed(versions) if back else versions
    first.answer, then.answer = reply(first.receipt), other(then.receipt)
    await repeated(Tills(tmp_path), first, then, b'{"cents":5}')


@both_ways
@pytest.mark.parametrize("change", ERRORS)
async def test_a_stored_error_is_answered_as_it_was_stored(change: str, back: bool, tmp_path: Path) -> None:
    old, old_error, new, new_error = ERRORS[change]
    versions = [(Version(CENTS, NUMBER, **old), old_error), (Version(CENTS, NUMBER, **new), new_error)]
    (first, error), (then, other) = reversed(versions) if back else versions
    first.answer, then.answer = error(first.declined), other(then.declined)
    await repeated(Tills(tmp_path), first, then, b'{"cents":5}')


async def test_a_stored_error_whose_class_is_gone_is_answered_as_it_was_stored(tmp_path: Path) -> None:
    first, then = Version(CENTS, NUMBER, CENTS), Version(CENTS, NUMBER)
    first.answer, then.answer = first.declined(5), then.receipt(1)
    await repeated(Tills(tmp_path), first, then, b'{"cents":5}')


@both_ways
async def test_the_parameters_of_path_and_query_belong_to_the_fingerprint(back: bool, tmp_path: Path) -> None:
    """Their order and the names in the path do not: a new version may rename these."""
    versions = [
        Version({"till": str, "cents": int}, NUMBER, path="POST /tills/{till}"),
        Version({"name": str, "cents": int, "note": (str, "")}, NUMBER, path="POST /tills/{name}"),
    ]
    first, then = reversed(versions) if back else versions
    first.answer, then.answer = first.receipt(1), then.receipt(2)
    tills = Tills(tmp_path)
    async with tills.node() as caller:
        for version in (first, then):
            async with tills.node(version.service):
                await caller.registry.wait_for("till")
                assert await tills.rest(caller, ("x",), (), b'{"cents": 5}', "k") == (200, b'{"number":1}')
                assert (await tills.rest(caller, ("y",), (), b'{"cents":5}', "k")).code == "idempotency-key-reused"
            await _until_gone(caller)
    assert (first.runs, then.runs) == (1, 0)


@both_ways
async def test_a_service_that_was_updated_may_repeat_its_request_with_one_more_field(back: bool, tmp_path: Path) -> None:
    """It sends its version's defaults."""
    old, new = Version(CENTS, NUMBER), Version(CENTS | {"note": (str, "")}, NUMBER)
    callers = [new, old] if back else [old, new]
    for callee in (old, new):
        callee.answer, callee.runs = callee.receipt(1), 0
        folder = tmp_path / str(id(callee))
        folder.mkdir()
        tills = Tills(folder)
        async with tills.node() as caller, tills.node(callee.service):
            await caller.registry.wait_for("till")
            for version in callers:
                await caller.client("test", (version.contract,)).request(version.pay(5), key="k")
            with pytest.raises(KeyReused):
                await caller.client("test", (old.contract,)).request(old.pay(6), key="k")
        assert callee.runs == 1


@pytest.mark.parametrize("zero_copy", [False, True], ids=["serialized", "zero-copy"])
async def test_in_one_process_a_stored_reply_that_does_not_fit_any_more_is_an_incident(zero_copy: bool, tmp_path: Path) -> None:
    """The caller expects the new type. A REST client gets what was stored."""
    first, then = Version(CENTS, NUMBER), Version(CENTS, str)
    first.answer, then.answer = first.receipt(1), "one"
    tills = Tills(tmp_path, zero_copy=zero_copy)
    for version in (first, then):
        async with tills.node(version.service) as node:
            await node.registry.wait_for("till")
            assert await tills.rest(node, (), (), b'{"cents":5}', "k") == (200, b'{"number":1}')
            answer = await typed(node.client("test", (version.contract,)), version.pay(5))
            assert answer == first.answer if version is first else answer.code == "internal"
    assert then.runs == 0


async def test_what_is_invalid_stays_invalid_unless_it_was_answered(tmp_path: Path) -> None:
    first, then = Version(CENTS, NUMBER), Version({"amount": int}, NUMBER)
    first.answer, then.answer = first.receipt(1), then.receipt(2)
    tills = Tills(tmp_path)
    async with tills.node() as caller:
        async with tills.node(first.service):
            await caller.registry.wait_for("till")
            await tills.rest(caller, (), (), b'{"cents":5}', "k")
        await _until_gone(caller)
        async with tills.node(then.service):
            await caller.registry.wait_for("till")
            for body, key in ((b'{"cents":6}', "k"), (b'{"cents":5}', "other"), (b'{"cents":5}', None)):
                assert (await tills.rest(caller, (), (), body, key)).code == Invalid.code
            assert (await tills.rest(caller, (), (), b'{"amount":5}', "k")).code == KeyReused.code


async def test_an_answer_stored_by_an_earlier_version_of_the_runtime_is_replayed(tmp_path: Path) -> None:
    version = Version(CENTS | {"note": (str, "")}, NUMBER)
    version.answer = version.receipt(1)
    tills = Tills(tmp_path)
    async with tills.node() as caller, tills.node(version.service):
        await caller.registry.wait_for("till")
        await tills.rest(caller, (), (), b'{"cents":5}', "k")
        database = SqliteDatabase(tmp_path / "till.sqlite")
        await database.open()
        await database.execute("UPDATE callboard_once SET digest = $1", sha256(b'{"cents":5,"note":""}').hexdigest())
        await database.close()
        assert await tills.rest(caller, (), (), b'{"cents":5}', "k") == (200, b'{"number":1}')
        assert (await tills.rest(caller, (), (), b'{"cents":6}', "k")).code == KeyReused.code
    assert version.runs == 1


def test_what_says_the_same_has_the_same_fingerprint() -> None:
    cls = Version({"cents": float, "tags": (frozenset[str], frozenset()), "item": (NewItem | None, None)}, NUMBER).pay

    def fingerprint(body: bytes, params: Any = None) -> Fingerprint:
        return Fingerprint((params, body), 0, msgspec.json.decode(body, type=cls))

    first = str(fingerprint(b'{"cents":1,"tags":["a","b"],"item":{"name":"x"}}'))
    assert fingerprint(b'{"tags":["b","a"], "cents":1.0, "item":{"count":1,"name":"x"}}').matches(first)
    for other in (
        b'{"cents":1}',
        b'{"cents":1,"tags":["a","b"],"item":{"name":"x","count":2}}',
        b'{"cents":2,"tags":["a","b"],"item":{"name":"x"}}',
    ):
        assert not fingerprint(other).matches(first)
    assert not Fingerprint(None, 0, None).matches(":"), "nothing is not the same as nothing"
    assert Fingerprint(((("b", "1"), ("a", "2")), b""), 0, None).matches(
        str(Fingerprint(((("a", "2"), ("b", "1")), b""), 0, None))
    )
    assert not Fingerprint(((("a", "2"), ("a", "1")), b""), 0, None).matches(
        str(Fingerprint(((("a", "1"), ("a", "2")), b""), 0, None))
    )
