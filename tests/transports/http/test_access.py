"""Who may ask what over HTTP: fields that may come once, and the readers of a stream."""

from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from config import compose
from runtime import ANYONE, Clock, Context, Contract, Event, Node, Request, Service, Transaction, handles
from runtime.storage.sqlite import SqliteFolder
from tests.http_peers import HttpPeers
from tests.project import RENTAL
from transports.http import fields
from transports.http.assertions import Signer
from transports.http.transport import HttpTransport

echo = Contract("echo")


@echo.message
class Say(Request[None]):
    """Publish `Said`."""


@echo.message
class Said(Event):
    """Something was said."""


class Publisher(Service):
    contract = echo

    @handles(allow=ANYONE)
    async def say(self, message: Say, ctx: Context, tx: Transaction) -> None:
        await tx.publish(Said())


async def ask(
    http_peers: HttpPeers, caller: str, *more: tuple[str, str], path: str = "/echo/Say", method: str = "POST"
) -> httpx.Response:
    assertion = Signer(http_peers.private[caller], Clock()).assertion(caller, "echo")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", verify=False) as client:
        head = [("Callboard-Assertion", assertion), ("Content-Type", "application/json"), *more]
        return await client.request(method, path, content=b"{}" if method == "POST" else None, headers=head)


def node(http_peers: HttpPeers, folder: Path, readers: Mapping[str, set[str]] | None = None, *more: str) -> Node:
    settings = http_peers.settings("echo", stream_readers=more)
    return Node([Publisher], HttpTransport(settings, readers=readers), databases=SqliteFolder(folder, durable=False))


async def test_two_fields_of_a_name_that_may_come_once_are_refused(http_peers: HttpPeers, tmp_path: Path) -> None:
    async with node(http_peers, tmp_path):
        assert (
            await ask(http_peers, "client", ("Accept", "a"), ("Accept", "b"), ("Prefer", "x"), ("Prefer", "y"))
        ).status_code == 200
        wrong = Signer(http_peers.private["other"], Clock()).assertion("other", "echo")
        for name in sorted(fields.ONCE - {"content-length"}):
            value = wrong if name == fields.ASSERTION else "1"
            answer = await ask(http_peers, "client", (name, value), (name, value))
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed"), name
            assert name in answer.json()["detail"]
        answer = await ask(http_peers, "client", path="/echo/presence?version=1&version=2", method="GET")
        assert answer.status_code == 400


async def test_a_stream_is_readable_by_its_subscribers_alone(http_peers: HttpPeers, tmp_path: Path) -> None:
    pull = "/echo/stream.Pull"
    async with node(http_peers, tmp_path, {"echo": {"client"}}):
        assert (await ask(http_peers, "other")).status_code == 200, "other requests are open to it"
        assert (await ask(http_peers, "client", path="/echo/stream.StreamHead")).json()["seq"] == 1
        for name in ("StreamHead", "Pull", "Anything"):
            refused = await ask(http_peers, "other", path=f"/echo/stream.{name}")
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert (await ask(http_peers, "client", path=pull)).status_code == 422, "the subscriber's request is read"
        heads = {
            caller: (await ask(http_peers, caller, path="/echo/presence", method="GET")).json().get("head")
            for caller in ("client", "other")
        }
        assert heads["other"] is None
        assert heads["client"] == heads["client"] | {"seq": 1}


@pytest.mark.parametrize("readers", [None, {"echo": {"client"}}])
async def test_the_settings_add_readers(http_peers: HttpPeers, tmp_path: Path, readers: Mapping[str, set[str]] | None) -> None:
    async with node(http_peers, tmp_path, readers, "echo=other"):
        for caller in ("client", "other"):
            assert (await ask(http_peers, caller, path="/echo/stream.StreamHead")).status_code == 200


def test_subscribers_and_the_gateway_may_read_the_streams_of_a_composed_system() -> None:
    readers = compose.stream_readers(RENTAL)
    assert readers["rides"] == {"gateway", "fleet", "wallet", "notices"}
    assert readers["auth"] == {"gateway", "wallet"}
    assert readers["devices"] == {"gateway"}


async def test_an_answer_does_not_name_the_server(http_peers: HttpPeers, tmp_path: Path) -> None:
    async with node(http_peers, tmp_path):
        for answer in (await ask(http_peers, "client"), await ask(http_peers, "client", path="/nothing")):
            assert not answer.headers.get("server")
