"""Manifests for Kubernetes: their shape, and what a check of their shape does not see."""

import base64
from pathlib import Path

import kubernetes_validate
import pytest

from config import compose
from tests.config.deploy.project import Object, deploy, documents, objects, of_kind, pods
from tests.project import RENTAL

SERVICES = {"auth", "wallet", "fleet", "rides", "notices", "devices", "gateway"}
DEFINITIONS = {one.contract.name: one for one in compose.definitions(RENTAL)}


@pytest.fixture
def found(way: str, tmp_path: Path) -> list[Object]:
    deploy("kubernetes", tmp_path / "out", "--image", "registry.example/rental:7", "--namespace", "rental")
    return objects(tmp_path / "out")


def matches(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def selected(found: list[Object], selector: Object) -> set[str]:
    return {name for name, template in pods(found) if matches(selector, template["metadata"]["labels"])}


def test_every_object_has_the_shape_that_kubernetes_expects(found: list[Object]) -> None:
    for one in found:
        kubernetes_validate.validate(one, "1.31", strict=True)
    assert len({(one["kind"], one["metadata"]["name"]) for one in found}) == len(found)
    assert {one["metadata"].get("namespace") for one in found if one["kind"] != "Namespace"} == {"rental"}


def test_every_service_runs_and_selectors_match_its_pods_alone(found: list[Object]) -> None:
    deployments = of_kind(found, "Deployment")
    assert deployments.keys() - {"mosquitto"} == SERVICES
    for name, one in deployments.items():
        assert selected(found, one["spec"]["selector"]) == {name}
    for kind in ("PodDisruptionBudget",):
        for name, one in of_kind(found, kind).items():
            assert selected(found, one["spec"]["selector"]) == {name}
    for name, one in of_kind(found, "Service").items():
        assert selected(found, {"matchLabels": one["spec"]["selector"]}) == {name}
        ports = {port["name"] for port in deployments[name]["spec"]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports


def test_a_service_has_one_instance_on_a_file_and_several_on_postgres(found: list[Object], way: str) -> None:
    for name, one in of_kind(found, "Deployment").items():
        spec = one["spec"]
        claims = [volume for volume in spec["template"]["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        if name == "mosquitto":
            continue
        if name != "gateway" and way not in ("postgres", "http"):
            assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"}), "two would share the file"
            [claim] = claims
            assert of_kind(found, "PersistentVolumeClaim")[claim["persistentVolumeClaim"]["claimName"]]["spec"][
                "accessModes"
            ] == ["ReadWriteOncePod"]
            assert name not in of_kind(found, "PodDisruptionBudget", "HorizontalPodAutoscaler"), "nothing could be evicted"
            continue
        assert "replicas" not in spec, "the scaler decides"
        assert claims == []
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        budget = of_kind(found, "PodDisruptionBudget")[name]["spec"]
        assert len({"minAvailable", "maxUnavailable"} & budget.keys()) == 1
        scaler = of_kind(found, "HorizontalPodAutoscaler")[name]["spec"]
        assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
        metrics = {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]}
        assert metrics == {"callboard_instance_load"} | (
            {"callboard_subscription_lag_events"} if DEFINITIONS[name].events else set()
        )


def test_a_pod_has_no_rights_that_it_does_not_need(found: list[Object]) -> None:
    for _, template in pods(found):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 1000
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert "memory" in container["resources"]["limits"]


def test_a_stop_has_the_time_that_the_drain_takes(found: list[Object]) -> None:
    for name, one in of_kind(found, "Deployment").items():
        spec = one["spec"]["template"]["spec"]
        [container] = spec["containers"]
        if name == "mosquitto":
            continue
        waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        delay = next(
            (float(value["value"]) for value in container["env"] if value["name"] == "CALLBOARD_GATEWAY__DRAIN_DELAY"), 0.0
        )
        assert spec["terminationGracePeriodSeconds"] > waits + delay + RENTAL.node.drain_timeout
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
        assert container["livenessProbe"]["exec"]["command"][-1] == "/healthz"
        for probe in (container["readinessProbe"], container["livenessProbe"]):
            assert len({"httpGet", "exec", "tcpSocket", "grpc"} & probe.keys()) == 1


def test_everything_that_a_pod_refers_to_exists(found: list[Object]) -> None:
    configured = of_kind(found, "ConfigMap")["callboard-settings"]["data"]
    for name, template in pods(found):
        mounted: dict[str, set[str]] = {}
        [container] = template["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "secret" in volume:
                mounted[mount["mountPath"]] = set(of_kind(found, "Secret")[volume["secret"]["secretName"]]["data"])
            elif "configMap" in volume:
                mounted[mount["mountPath"]] = set(of_kind(found, "ConfigMap")[volume["configMap"]["name"]]["data"])
        if name == "mosquitto":
            continue
        environment = {**configured, **{one["name"]: one["value"] for one in container["env"]}}
        for variable, value in environment.items():
            if value.startswith("/run/"):
                folder, _, file = value.rpartition("/")
                assert file in mounted[folder], (name, variable)


def test_nothing_secret_is_outside_of_secrets(found: list[Object], tmp_path: Path) -> None:
    secret = {base64.b64decode(value) for one in of_kind(found, "Secret").values() for value in one["data"].values()}
    texts = {text.strip() for text in secret if 8 < len(text) < 100 or b"PRIVATE KEY" in text}
    assert len(texts) > 10
    for path in (tmp_path / "out").glob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [text for text in texts if text in content], path
            assert b"sesame" not in content
    for name in ("secrets.yaml", "dynamic-security.json", "postgresql-roles.sql"):
        if (tmp_path / "out" / name).exists():
            assert (tmp_path / "out" / name).stat().st_mode & 0o077 == 0
    assert (tmp_path / "out" / "secrets").stat().st_mode & 0o077 == 0
    assert "secrets.yaml" in (tmp_path / "out" / ".gitignore").read_text()


def test_the_network_lets_a_service_reach_what_it_calls_and_nothing_else(found: list[Object], way: str) -> None:
    policies = of_kind(found, "NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, one in policies.items():
        assert "podSelector" in one["spec"], "without one it would select nothing, or everything"
        if name not in ("deny-all", "allow-dns"):
            assert selected(found, one["spec"]["podSelector"]), name
    has_broker = "mosquitto" in of_kind(found, "Deployment")
    for name in SERVICES:
        egress = policies[name]["spec"]["egress"]
        reached = {
            (target, port["port"])
            for rule in egress
            for to in rule.get("to", ())
            for target in selected(found, to["podSelector"])
            for port in rule["ports"]
        }
        needs = {other for other in DEFINITIONS[name].needs if other in SERVICES} | {"auth"} if name != "gateway" else SERVICES
        expected = {(other, 8100) for other in needs - {name}} if "http" in way else set()
        assert reached == expected | ({("mosquitto", 8883)} if has_broker else set())
        anywhere = {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}
        assert anywhere == ({5433} if way in ("postgres", "http") and name != "gateway" else set()) | (
            {9883} if way == "own broker" else set()
        )
        for other, port in reached:
            rules = policies[other]["spec"]["ingress"]
            callers = {
                caller
                for rule in rules
                if {"protocol": "TCP", "port": port} in rule["ports"]
                for source in rule["from"]
                for caller in selected(found, source["podSelector"])
            }
            assert name in callers, "the other side lets it in, too"


def test_migrations_run_as_a_job_of_the_services_own_role(found: list[Object], way: str) -> None:
    jobs = {job["spec"]["template"]["spec"]["containers"][0]["args"][1]: job for job in of_kind(found, "Job").values()}
    assert jobs.keys() == (SERVICES - {"gateway"} if way in ("postgres", "http") else set())
    for service, job in jobs.items():
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert container["args"] == ["migrate", service]
        assert container["image"] == "registry.example/rental:7"
        url = base64.b64decode(of_kind(found, "Secret")[f"{service}-secrets"]["data"]["database-url"]).decode()
        assert url.startswith(f"postgresql://{service}:")
        assert url.endswith("@db.example:5433/rental")
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"


def test_the_settings_of_the_project_reach_its_services(found: list[Object]) -> None:
    settings = of_kind(found, "ConfigMap")["callboard-settings"]["data"]
    assert settings["CALLBOARD_SERVICES__WALLET__SETTINGS__HOLD_SECONDS"] == "77.0"
    assert settings["CALLBOARD_SERVICES__RIDES__CLASS"] == "services.rides.service:Rides"
    assert all(isinstance(value, str) for value in settings.values())


def test_secrets_are_kept_when_it_is_written_again_and_a_changed_setting_replaces_pods(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy("kubernetes", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    deploy("kubernetes", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    monkeypatch.setenv("CALLBOARD_SERVICES__WALLET__SETTINGS__HOLD_SECONDS", "78")
    deploy("kubernetes", tmp_path / "out")
    assert (tmp_path / "out" / "secrets.yaml").read_bytes() == before["secrets.yaml"]
    old, new = (documents(text)[0] for text in (before["rides.yaml"], (tmp_path / "out" / "rides.yaml").read_bytes()))
    assert old["spec"]["template"]["metadata"] != new["spec"]["template"]["metadata"]
