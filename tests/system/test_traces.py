"""Traces: spans of separate processes make one trace in a collector, and the logs name it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.testing import eventually
from tests.otlp import Collector, Received
from tests.services.test_rides import add_scooter, start, top_up
from tests.system.process import command
from tests.system.test_commands import one_line
from tests.system_under_test import callboard_up


async def test_one_request_is_found_by_its_id_in_trace_and_logs_of_all_processes(tmp_path: Path) -> None:
    with Collector() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "CALLBOARD_LOG__FORMAT": "json",
        }  # fmt: skip
        async with callboard_up(tmp_path, **variables) as system:
            scooter = await add_scooter(system)
            rider = await system.bearer()
            await top_up(system, rider, 2000)
            refused = await start(system, rider, "no-such-scooter")
            assert refused.status_code == 404
            answer = await start(system, rider | {"X-Request-Id": "ride-1"}, scooter)
            assert answer.status_code == 201
            await eventually(
                lambda: bool(collector.find("notices", "process rides.RideStarted", "CONSUMER")), "the last span has come", 20
            )
            await eventually(lambda: len(collector.find("gateway", "POST /rides", "SERVER")) == 2, "the first span has come", 20)
            running = system.process
            assert running is not None
            await running.until(lambda: bool(accesses(running.output, "ride-1")), "the access log")
    check_trace(collector)
    [access] = accesses(running.output, "ride-1")
    [root] = [
        span for span in collector.find("gateway", "POST /rides", "SERVER") if span.attributes["callboard.request_id"] == "ride-1"
    ]
    assert (access["trace_id"], access["status"]) == (root.trace, 201)


def accesses(log: str, request: str) -> list[dict[str, Any]]:
    """Return the records of the access log for a request."""
    return [one for one in records(log) if one.get("request_id") == request and one["logger"] == "callboard.access"]


def records(log: str) -> list[dict[str, Any]]:
    """Return the records in the output of several processes, which `callboard up` prints with their names."""
    return [json.loads(line[line.index("{") :]) for line in log.splitlines() if line.endswith("}") and "{" in line]


def check_trace(collector: Collector) -> None:
    [root] = [
        span for span in collector.find("gateway", "POST /rides", "SERVER") if span.attributes["http.response.status_code"] == 201
    ]
    spans = {span.id: span for span in collector.spans if span.trace == root.trace}

    def parent(span: Received) -> Received:
        return spans[span.parent]

    def the(service: str, name: str, kind: str) -> Received:
        [found] = [one for one in spans.values() if (one.service, one.name, one.kind) == (service, name, kind)]
        return found

    assert (root.kind, root.parent) == ("SERVER", "")
    assert root.attributes["http.route"] == "/rides"
    called = the("rides", "rides.StartRide", "SERVER")
    assert parent(called).kind == "CLIENT"
    assert parent(parent(called)) == root
    for service, name in (("wallet", "wallet.Hold"), ("fleet", "fleet.Reserve")):
        server = the(service, name, "SERVER")
        assert server.attributes["rpc.method"] == name
        assert parent(server) == the("rides", name, "CLIENT")
        assert parent(parent(server)) == called
        assert parent(the(service, f"transaction {service}", "CLIENT")) == server or service == "fleet"
    committed = the("rides", "transaction rides", "CLIENT")
    assert committed.attributes["db.system.name"] == "sqlite"
    for service in ("wallet", "notices", "fleet"):
        applied = the(service, "process rides.RideStarted", "CONSUMER")
        assert applied.links == (committed.id,), "the event links to the transaction that published it"
        assert applied.attributes["messaging.message.id"]
    [failed] = [span for span in collector.find("rides", "rides.StartRide", "SERVER") if span.failed]
    assert failed.attributes["error.type"] == "unknown-scooter"


def test_without_its_variables_nothing_of_opentelemetry_is_loaded() -> None:
    script = (
        "import sys, config.cli.run, config.cli.dev; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10", "max_export_batch_size"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "expected otlp or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "expected http/protobuf"),
    ],
)
async def test_a_variable_that_cannot_be_used_is_one_line(variable: str, value: str, said: str, tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", variable: value}
    line = one_line(*await command(tmp_path, "dev", "--no-reload", "--port", "0", **variables))
    assert said in line
