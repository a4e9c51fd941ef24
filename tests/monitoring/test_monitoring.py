"""The alert rules and the dashboard of `containers/monitoring`, on Prometheus' own tools and on a real Prometheus."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from config.packages import ROOT
from runtime.metrics import FAMILIES
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.gateway.test_exposition import find_program
from tests.services.test_rides import add_scooter, start, top_up
from tests.system_under_test import callboard_up

FOLDER = ROOT / "containers" / "monitoring"
_METRIC = re.compile(r"\b(callboard_\w+|process_\w+)(?:\{([^}]*)\})?")
_OF_PROCESSES = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"}
_PER_NODE = {"job", "instance"}
TOKEN = "a token of a collector"


def promtool(*arguments: str) -> None:
    done = subprocess.run([find_program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules.yml"), ("test", "rules", "rules.test.yml"), ("check", "config", "prometheus.yml")]
)
def test_prometheus_accepts_the_rules_and_they_say_what_they_should(arguments: tuple[str, ...]) -> None:
    promtool(*arguments)


def rules() -> list[dict[str, Any]]:
    document = msgspec.yaml.decode((FOLDER / "rules.yml").read_bytes())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    text = (FOLDER / "grafana" / "dashboards" / "callboard.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["panels"]
    return found


def test_every_rule_is_tested() -> None:
    text = (FOLDER / "rules.test.yml").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if text.count(f"alertname: {rule['alert']}") < 1] == []


def queries() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize("query", queries())
def test_queries_name_metrics_and_labels_that_there_are(query: str) -> None:
    """A query for what does not exist is valid, and its alert never fires."""
    used = _METRIC.findall(query)
    assert used or "up{" in query
    labels = {"le", *_PER_NODE}
    for name, selectors in used:
        short = name.removeprefix("callboard_")
        base = re.sub(r"_(bucket|sum|count)$", "", short)
        family = FAMILIES.get(short) or FAMILIES.get(base)
        assert (family is not None and (short == base or family.kind == "histogram")) or name in _OF_PROCESSES, name
        own = set(() if family is None else family.labels) | {"le", *_PER_NODE}
        labels |= own
        assert set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selectors)) <= own, query
    grouped = {name.strip() for text in re.findall(r"\bby \(([^)]*)\)", query) for name in text.split(",")}
    assert grouped <= labels, query


def test_every_panel_has_its_place() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(places) == len(set(places)) == len({panel["title"] for panel in panels()})


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Run Prometheus with the rules, which reads the metrics of one address with a token."""
    (folder / "rules.yml").write_text((FOLDER / "rules.yml").read_text(encoding="utf-8"))
    scrape = {
        "job_name": "callboard", "static_configs": [{"targets": [target]}],
        "authorization": {"type": "Bearer", "credentials": TOKEN},
    }  # fmt: skip
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = any_free_port()
    process = await asyncio.create_subprocess_exec(
        find_program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}",
        cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def test_prometheus_receives_what_a_running_system_did(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "prometheus").mkdir()
    async with callboard_up(tmp_path / "system", CALLBOARD_GATEWAY__METRICS_TOKEN=TOKEN) as system:
        scooter = await add_scooter(system)
        rider = await system.bearer()
        await top_up(system, rider, 2000)
        assert (await start(system, rider, scooter)).status_code == 201
        target = system.url.removeprefix("http://").rstrip("/")
        async with prometheus(tmp_path / "prometheus", target) as client:

            async def value(query: str) -> float | None:
                try:
                    answer = (await client.get("/api/v1/query", params={"query": query})).json()
                except (httpx.HTTPError, ValueError):
                    return None  # it is starting
                found = answer["data"]["result"]
                return float(found[0]["value"][1]) if found else None

            async def has_come() -> bool:
                return (
                    await value('callboard_http_request_duration_seconds_count{method="POST",route="/rides",status="201"}') == 1
                )

            await eventually(has_come, "the ride is in Prometheus", 30)
            assert await value('up{job="callboard"}') == 1
            assert await value('callboard_build_info{service="gateway"}') == 1
            for query in queries():
                answer = await client.get(
                    "/api/v1/query", params={"query": query.replace("$__rate_interval", "1m").replace("$service", ".*")}
                )
                assert answer.status_code == 200, (query, answer.text)
            rules_seen = (await client.get("/api/v1/rules")).json()["data"]["groups"][0]["rules"]
            assert {rule["name"] for rule in rules_seen if rule["state"] == "firing"} == set()
