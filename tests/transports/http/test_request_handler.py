"""The server side of the HTTP transport: accepted and refused requests, cancellation, and draining."""

import asyncio
import time
from collections.abc import AsyncGenerator

import httpx
import pytest

from runtime import Clock, ServiceError
from runtime.testing import RecordingReceiver, eventually
from tests.http_peers import HttpPeers
from tests.transports.http.echo import Echo, Say, Wait, echo_over_http
from transports.http.assertions import Signer
from transports.http.transport import HttpTransport


async def test_a_plain_http_client_can_call_a_service(http_peers: HttpPeers) -> None:
    """The client follows docs/wire.md, and uses none of Callboard's code except to sign the assertion."""
    service = Echo("label")
    async with (
        echo_over_http(http_peers, service),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", verify=False) as client,
    ):
        assertion = {"Callboard-Assertion": Signer(http_peers.private["other"], Clock()).assertion("other", "echo")}
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        answer = await client.post(
            "/echo/Say", json={"text": "ü", "later": "a field that is not known yet"}, headers={**assertion, "traceparent": trace}
        )
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"text": "ü", "caller": "other", "key": "label", "trace": trace.split("-")[1]}
        assert (
            await client.post("/echo/Say", content=b"{}", headers={**assertion, "Prefer": "respond-async"})
        ).status_code == 202

        async def refused(
            path: str, status: int, code: str, content: bytes = b"{}", method: str = "POST", **headers: str
        ) -> httpx.Response:
            answer = await client.request(method, path, content=content, headers={**assertion, **headers})
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
            assert (answer.json()["code"], answer.json()["status"]) == (code, status)
            return answer

        assert "text" in (await refused("/echo/Say", 422, "invalid")).text
        await refused("/echo/Say", 400, "malformed", b"{")
        await refused("/echo/Nothing", 404, "unknown-request")
        await refused("/echo/Find", 404, "gone")
        await refused("/echo/Riders", 401, "unauthenticated")
        await refused("/echo/Riders", 401, "unauthenticated", Authorization="Bearer x.y.z")
        await refused("/echo/Riders", 400, "malformed", Authorization="Basic eDp5")
        await refused("/echo/Say", 400, "malformed", b"{}", "POST", **{"Callboard-Budget": "soon"})
        for budget in ("١٠٠".encode(), "１００".encode(), b"\xb2", b"+100", b"1_0", b"100.0", b""):
            raw = [(name.encode(), value.encode()) for name, value in assertion.items()] + [(b"Callboard-Budget", budget)]
            answer = await client.post("/echo/Say", content=b"{}", headers=raw)
            assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), budget
        await refused("/echo/Say", 400, "malformed", b"{}", "POST", **{"Callboard-Path": "{"})
        await refused("/echo/Say", 404, "no-instance", b"{}", "POST", **{"Callboard-To": "another-node"})
        await refused("/nobody/Say", 401, "unreachable")
        await refused("/echo/Say", 401, "unreachable", b"{}", "POST", **{"Callboard-Assertion": ""})
        await refused("/echo/Say", 405, "malformed", b"", "GET")
        await refused("/echo", 404, "malformed")
        await refused("/echo/a%0Ab", 404, "malformed")

        async def chunks() -> AsyncGenerator[bytes, None]:
            yield b"{}"

        assert (await client.post("/echo/Say", content=chunks(), headers=assertion)).status_code == 411
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/echo/Wait", content=b"{}", headers=assertion, timeout=0.3)
        await eventually(lambda: service.running == 0, "closing the connection cancels the request")


async def test_a_refusal_before_the_body_was_read_reaches_the_client(http_peers: HttpPeers) -> None:
    async def large() -> AsyncGenerator[bytes, None]:
        for _ in range(80):
            yield bytes(65536)

    async with (
        echo_over_http(http_peers, Echo()),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", verify=False) as client,
    ):
        signer = Signer(http_peers.private["other"], Clock())
        for assertion, status in (("", 401), (signer.assertion("other", "echo"), 411)):
            answer = await client.post("/echo/Say", content=large(), headers={"Callboard-Assertion": assertion})
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_requests_of_two_callers_with_the_same_id_are_kept_apart(http_peers: HttpPeers) -> None:
    service = Echo()
    async with (
        echo_over_http(http_peers, service),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", timeout=5, verify=False) as client,
    ):

        def head(name: str, **more: str) -> dict[str, str]:
            return {
                "Callboard-Assertion": Signer(http_peers.private[name], Clock()).assertion(name, "echo"),
                "Callboard-Id": "1",
                **more,
            }

        waiting = asyncio.create_task(client.post("/echo/Wait", content=b"{}", headers=head("other")))
        named = asyncio.create_task(client.post("/echo/Wait", content=b"{}", headers=head("other", **{"Callboard-Node": "n"})))
        await eventually(lambda: service.running == 2, "both requests are running")
        for name, more in (("other", {}), ("client", {}), ("client", {"Callboard-Node": "n"})):
            assert (await client.post("/echo/Say", content=b'{"text":"x"}', headers=head(name, **more))).status_code == 200
        twice = await client.post("/echo/Say", content=b'{"text":"x"}', headers=head("other", **{"Callboard-Node": "n"}))
        assert twice.status_code == 409, "the same request does not run a second time"
        assert service.running == 2
        for task in (waiting, named):
            task.cancel()
        await asyncio.gather(waiting, named, return_exceptions=True)
        await eventually(lambda: service.running == 0, "each closed connection cancels its own request")


async def test_abandoned_calls_leave_nothing_behind(http_peers: HttpPeers) -> None:
    service = Echo()
    async with echo_over_http(http_peers, service) as (node, ctx):
        for _ in range(5):
            tasks = [asyncio.create_task(ctx.request(Wait(), timeout=0.3 if number % 2 else None)) for number in range(60)]
            await asyncio.sleep(0)
            await eventually(lambda: service.running > 20, "some requests are running")
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: service.running == 0, "no request is running")
        request_handler = node.environment.transport._opened.request_handler  # type: ignore[attr-defined]  # no public API shows what is left
        await eventually(lambda: not request_handler._answering and not node.inbound._running, "no state of the calls is left")
        assert (await ctx.request(Say("x"))).text == "x"


async def test_a_draining_instance_gets_no_new_requests(http_peers: HttpPeers) -> None:
    service = Echo()
    async with echo_over_http(http_peers, service) as (node, ctx):
        started = time.monotonic()
        task = asyncio.create_task(ctx.request(Wait()))
        await eventually(lambda: service.running == 1, "the request is running")
        stopping = asyncio.create_task(node.stop())
        with pytest.raises(ServiceError) as refused:
            while time.monotonic() - started < 3:
                await ctx.request(Say("x"), timeout=0.5)
        assert refused.value.status == 503
        assert not refused.value.maybe_delivered
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stopping


async def test_a_node_that_never_answers_is_reported_as_lost_after_the_deadline(http_peers: HttpPeers) -> None:
    """Even when a node loses a request, its caller gets an error that says it may have run, soon after the deadline."""
    transport = HttpTransport(http_peers.settings("echo"))
    await transport.open("server", RecordingReceiver())
    await transport.listen("echo")
    headers = {
        "Callboard-Assertion": Signer(http_peers.private["other"], Clock()).assertion("other", "echo"),
        "Callboard-Budget": "100",
    }
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_peers.ports['echo']}", timeout=10, verify=False) as client:
            answer = await client.post("/echo/Say", content=b"{}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (502, "instance-lost")
    finally:
        await transport.close()
