"""`/metrics`: what Prometheus gets, as its own tool judges it, and who gets it."""

import shutil
import subprocess

import pytest

from gateway.exposition import Exposition
from runtime.testing import FakeAuth
from tests.gateway.environment import GatewayEnvironment, check_problem
from tests.services.test_rides import add_scooter, start, top_up, wait_until_consistent
from tests.system_under_test import System

TOKEN = "a token of a collector"


def series(text: str, name: str) -> dict[str, float]:
    """Return the values of a metric by its labels, as they are written."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return {line[len(name) : line.rindex(" ")]: float(line.rpartition(" ")[2]) for line in lines}


def find_program(name: str) -> str:
    """Return the path of one of Prometheus' programs."""
    program = shutil.which(name)
    assert program is not None, f"{name} is needed: `make test` installs it (Debian: apt-get install prometheus)"
    return program


def check(text: str) -> None:
    """Check metrics with Prometheus' own tool."""
    done = subprocess.run([find_program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_prometheus_accepts_the_metrics_of_every_node_and_they_say_what_happened(deployment: System) -> None:
    scooter = await add_scooter(deployment)
    rider = await deployment.bearer()
    await top_up(deployment, rider, 2000)
    ride = (await start(deployment, rider, scooter)).json()
    assert (await deployment.client.post(f"/rides/{ride['id']}/end", headers=rider)).status_code == 200
    refused = await start(deployment, rider, "no-such-scooter")
    assert refused.status_code == 404
    await wait_until_consistent(deployment)
    found: dict[str, float] = {}
    for node in {id(node): node for node in deployment.nodes}.values():
        media_type, body = Exposition(node.metrics).render("")
        assert media_type.startswith("text/plain; version=")
        text = body.decode()
        check(text)
        for name in (
            "callboard_request_duration_seconds_count", "callboard_request_errors_total", "callboard_commit_transactions_sum",
            "callboard_stream_head_events", "callboard_events_applied_total", "callboard_http_request_duration_seconds_count",
            "callboard_subscription_lag_events", "callboard_dead_letters_total", "callboard_build_info",
            "callboard_requests_refused_total",
        ):  # fmt: skip
            found |= {f"{name}{labels}": value for labels, value in series(text, name).items()}
    assert found['callboard_request_duration_seconds_count{request="rides.StartRide",service="rides"}'] == 2
    assert found['callboard_request_errors_total{code="unknown-scooter",request="rides.StartRide",service="rides"}'] == 1
    assert found['callboard_http_request_duration_seconds_count{method="POST",route="/rides",status="201"}'] == 1
    assert found['callboard_stream_head_events{service="rides"}'] == 2
    assert found['callboard_events_applied_total{publisher="rides",service="wallet"}'] == 2
    assert found['callboard_subscription_lag_events{publisher="rides",service="notices"}'] == 0
    assert found['callboard_dead_letters_total{publisher="rides",service="notices"}'] == 0, "it is there from the start"
    assert found['callboard_requests_refused_total{code="overloaded",service="auth"}'] == 0
    assert found['callboard_commit_transactions_sum{service="rides"}'] >= 2
    assert any(name.startswith("callboard_build_info") and 'service="rides"' in name for name in found)


async def test_openmetrics_is_answered_to_who_asks_for_it(env: GatewayEnvironment) -> None:
    headers = {
        "Authorization": f"Bearer {FakeAuth.token('o', 'operator')}",
        "Accept": "application/openmetrics-text;version=1.0.0",
    }
    answer = await env.client.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "x;;=", "*/*;q=2", "ü"])
async def test_an_odd_accept_field_gets_the_text_that_every_collector_reads(accept: str) -> None:
    async with GatewayEnvironment("one-node-zero-copy", metrics="public") as env:
        answer = await env.client.get("/metrics", headers=[(b"accept", accept.encode())])
        assert answer.status_code == 200
        assert answer.headers["x-request-id"]
        check(answer.text)


async def test_the_metrics_are_for_operators_and_collectors() -> None:
    async with GatewayEnvironment("one-node-zero-copy", metrics_token=TOKEN) as env:

        def bearer(token: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {token}"}

        check_problem(await env.client.get("/metrics"), 401, "unauthenticated")
        check_problem(await env.client.get("/metrics", headers=bearer("another token")), 401, "unauthenticated")
        check_problem(await env.client.get("/metrics", headers=bearer(FakeAuth.token("u", "rider"))), 403, "forbidden")
        for header in (bearer(TOKEN), {"Authorization": f"bearer {TOKEN}"}, bearer(FakeAuth.token("o", "operator"))):
            answer = await env.client.get("/metrics", headers=header)
            assert answer.status_code == 200
            check(answer.text)


async def test_without_a_token_set_no_text_is_one() -> None:
    async with GatewayEnvironment("one-node-zero-copy") as env:
        check_problem(await env.client.get("/metrics", headers={"Authorization": "Bearer None"}), 401, "unauthenticated")


@pytest.mark.parametrize("method", ["BREW", "GET", "HEAD"])
async def test_methods_and_paths_of_clients_make_no_new_series(method: str) -> None:
    async with GatewayEnvironment("one-node-zero-copy", metrics="public") as env:
        for number in range(20):
            await env.client.request(method if method != "BREW" else f"BREW{number}", f"/nothing/{number}")
        text = (await env.client.get("/metrics")).text
        assert len(series(text, "callboard_http_request_duration_seconds_count")) <= 2
