"""A deployment for Kubernetes: plain manifests, without a package manager.

Each service is a Deployment. One whose database is a file has a single instance, which ends before the next one starts. The
others have at least two, which are spread over the nodes and scaled by load and lag.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from config.deploy.mosquitto import BROKER_FILES, CONFIGURATION
from config.deploy.plan import BROKER_PORT, BROKER_USER, GATEWAY_PORT, HEALTH_PORT, HTTP_PORT, PRE_STOP, USER, Plan, Planned

Object = dict[str, Any]
"""A Kubernetes object."""

_BROKER = "mosquitto"
_GROWTH = 5
"""How many times as many instances as planned there may be under load."""
_TARGET_LOAD, _TARGET_LAG = "32", "500"
"""The messages in progress, and the events not applied yet, per instance, above which there are more instances."""
_MIGRATIONS_KEPT = 24 * 3600


def files(plan: Plan, namespace: str) -> dict[str, bytes]:
    """Return the manifests, by the names of their files. `secrets.yaml` must not be committed."""
    own = _of_files(plan)
    found: dict[str, list[Object]] = {
        "namespace.yaml": [
            _object("v1", "Namespace", namespace, None, {}, labels={"pod-security.kubernetes.io/enforce": "restricted"})
        ],
        "settings.yaml": [
            _object("v1", "ConfigMap", "callboard-settings", namespace, {"data": dict(plan.environment)}),
            _object(
                "v1",
                "ConfigMap",
                "callboard-shared",
                namespace,
                {"data": _texts(plan.secrets / "shared", ("ca.pem", "peer-keys.json"))},
            ),
        ],
        "secrets.yaml": list(_secrets(plan, namespace)),
        "network.yaml": list(_policies(plan, namespace)),
    }
    if plan.broker:
        found["mosquitto.yaml"] = list(_broker(plan, namespace))
    if plan.needs_postgres:
        found["migrations.yaml"] = [_migration(plan, one, namespace, own) for one in plan.services if one.on_postgres]
    for one in plan.services:
        found[f"{one.host}.yaml"] = list(_service(plan, one, namespace, own))
    manifests = {name: b"---\n".join(msgspec.yaml.encode(one) for one in objects) for name, objects in found.items()}
    listed = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": list(found),
    }
    return manifests | {"kustomization.yaml": msgspec.yaml.encode(listed)}


def _object(
    api: str, kind: str, name: str, namespace: str | None, fields: Object, labels: Mapping[str, str] | None = None
) -> Object:
    metadata: Object = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    metadata["labels"] = {"app.kubernetes.io/part-of": "callboard", **(labels or {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _selector(*names: str) -> Object:
    if len(names) == 1:
        return {"matchLabels": _labels(names[0])}
    return {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": list(names)}]}


def _of_files(plan: Plan) -> str:
    """Return a digest of the settings and secrets. A change of it replaces the pods, which read most of them at their start."""
    paths = (path for path in sorted(plan.secrets.rglob("*")) if path.is_file() and path.parent.name != _BROKER)
    settings = msgspec.json.encode(dict(plan.environment), order="sorted").decode()
    return _digest(plan.image, settings, *(path.read_text(encoding="utf-8") for path in paths))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _texts(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def _secrets(plan: Plan, namespace: str) -> Iterator[Object]:
    owners = {one.name: (one.host, one.files) for one in plan.services}
    if plan.broker:
        owners[_BROKER] = (_BROKER, BROKER_FILES)
    for name, (host, names) in owners.items():
        data = {file: base64.b64encode((plan.secrets / name / file).read_bytes()).decode() for file in names}
        yield _object("v1", "Secret", f"{host}-secrets", namespace, {"type": "Opaque", "data": data})


# Pods

_UNPRIVILEGED: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _pod(user: int, containers: list[Object], volumes: list[Object], grace: int, own: str, **more: Any) -> Object:
    return {
        "metadata": {"labels": more.pop("labels"), "annotations": {"callboard/settings": own}},
        "spec": {
            **more,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # their variables would look like settings
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": user,
                "runAsGroup": user,
                "fsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": containers,
            "volumes": volumes,
        },
    }


def _container(plan: Plan, one: Planned, command: list[str], **more: Any) -> Object:
    return {
        "name": one.host,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "args": command,
        "envFrom": [{"configMapRef": {"name": "callboard-settings"}}],
        "env": [{"name": name, "value": value.replace("$(", "$$(")} for name, value in one.environment.items()],
        **more,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": _UNPRIVILEGED,
        "volumeMounts": [
            {"name": "secrets", "mountPath": "/run/secrets", "readOnly": True},
            {"name": "shared", "mountPath": "/run/shared", "readOnly": True},
            {"name": "data", "mountPath": "/data"},
        ],
    }


def _volumes(one: Planned) -> list[Object]:
    data: Object = (
        {"persistentVolumeClaim": {"claimName": f"{one.host}-data"}} if one.has_file else {"emptyDir": {"sizeLimit": "64Mi"}}
    )
    return [
        {"name": "secrets", "secret": {"secretName": f"{one.host}-secrets", "defaultMode": 0o440, "optional": False}},
        {"name": "shared", "configMap": {"name": "callboard-shared"}},
        {"name": "data", **data},
    ]


def _service(plan: Plan, one: Planned, namespace: str, own: str) -> Iterator[Object]:
    ports = [{"name": "health", "containerPort": HEALTH_PORT}]
    if one.is_gateway:
        ports.append({"name": "http", "containerPort": GATEWAY_PORT})
    elif plan.speaks_http:
        ports.append({"name": "peers", "containerPort": HTTP_PORT})
    container = _container(
        plan, one, ["run", one.name],
        ports=ports,
        readinessProbe={"httpGet": {"path": "/readyz", "port": "health"}, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        livenessProbe={
            "exec": {"command": ["python", "-I", "-S", "/opt/callboard/health.py", "/healthz"]},
            "initialDelaySeconds": 30, "periodSeconds": 20, "timeoutSeconds": 5, "failureThreshold": 3,
        },
        lifecycle={"preStop": {"exec": {"command": ["sleep", str(PRE_STOP[one.is_gateway])]}}},
    )  # fmt: skip
    spread = {
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": _selector(one.host),
    }  # fmt: skip
    strategy: Object = (
        {"type": "Recreate"} if one.has_file else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    )
    yield _object(
        "apps/v1", "Deployment", one.host, namespace,
        {
            "spec": {
                # where a scaler decides on the number, a later `apply` must not set it back
                **({} if one.replicas > 1 else {"replicas": 1}),
                "revisionHistoryLimit": 5,
                "selector": _selector(one.host),
                "strategy": strategy,
                "template": _pod(
                    USER, [container], _volumes(one), one.grace, own,
                    labels=_labels(one.host), **({} if one.has_file else {"topologySpreadConstraints": [spread]}),
                ),
            }
        },
        _labels(one.host),
    )  # fmt: skip
    if one.has_file:
        yield _object(
            "v1", "PersistentVolumeClaim", f"{one.host}-data", namespace,
            {"spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}},
        )  # fmt: skip
    if one.is_gateway:
        port = {"name": "http", "port": 80, "targetPort": "http"}
        yield _object(
            "v1", "Service", one.host, namespace, {"spec": {"selector": _labels(one.host), "ports": [port]}}, _labels(one.host)
        )
    elif plan.speaks_http:
        peers = {"name": "peers", "port": HTTP_PORT, "targetPort": "peers"}
        # each address of the name is one instance; one that is not ready may have to answer others before they are ready
        headless = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _labels(one.host), "ports": [peers]}
        yield _object("v1", "Service", one.host, namespace, {"spec": headless}, _labels(one.host))
    if one.replicas > 1:
        yield _object(
            "policy/v1", "PodDisruptionBudget", one.host, namespace, {"spec": {"maxUnavailable": 1, "selector": _selector(one.host)}},
            _labels(one.host),
        )  # fmt: skip
        yield _scaler(one, namespace)


def _scaler(one: Planned, namespace: str) -> Object:
    """Return what adds instances by load and lag. The metrics come from `/metrics`, by an adapter such as prometheus-adapter."""
    wanted = {"callboard_instance_load": _TARGET_LOAD}
    if one.subscribes:
        wanted["callboard_subscription_lag_events"] = _TARGET_LAG
    metrics = [
        {"type": "Pods", "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": value}}}
        for name, value in wanted.items()
    ]
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": one.host},
        "minReplicas": one.replicas,
        "maxReplicas": one.replicas * _GROWTH,
        "metrics": metrics,
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    }
    return _object("autoscaling/v2", "HorizontalPodAutoscaler", one.host, namespace, {"spec": spec}, _labels(one.host))


def _migration(plan: Plan, one: Planned, namespace: str, own: str) -> Object:
    """Return the job that brings a database up to the version of the image. A new image or new settings need a new job."""
    name = f"{one.host}-migrations"
    container = _container(plan, one, ["migrate", one.name])
    pod = _pod(USER, [container], _volumes(one), one.grace, own, labels=_labels(name), restartPolicy="OnFailure")
    spec = {"backoffLimit": 6, "ttlSecondsAfterFinished": _MIGRATIONS_KEPT, "template": pod}
    version = _digest(msgspec.json.encode(pod).decode())[:8]
    return _object("batch/v1", "Job", f"{name}-{version}", namespace, {"spec": spec}, _labels(name))


def _broker(plan: Plan, namespace: str) -> Iterator[Object]:
    own = _digest(CONFIGURATION, *((plan.secrets / _BROKER / file).read_text(encoding="utf-8") for file in BROKER_FILES))
    yield _object("v1", "ConfigMap", f"{_BROKER}-settings", namespace, {"data": {"mosquitto.conf": CONFIGURATION}})
    container = {
        "name": _BROKER,
        "image": "docker.io/library/eclipse-mosquitto:2",
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "services", "containerPort": BROKER_PORT}, {"name": "devices", "containerPort": BROKER_PORT + 1}],
        "readinessProbe": {"tcpSocket": {"port": "services"}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": _UNPRIVILEGED,
        "volumeMounts": [
            {"name": "secrets", "mountPath": "/run/secrets", "readOnly": True},
            {"name": "settings", "mountPath": "/mosquitto/config", "readOnly": True},
        ],
    }
    volumes = [
        {"name": "secrets", "secret": {"secretName": f"{_BROKER}-secrets", "defaultMode": 0o440, "optional": False}},
        {"name": "settings", "configMap": {"name": f"{_BROKER}-settings"}},
    ]
    pod = _pod(BROKER_USER, [container], volumes, 10, own, labels=_labels(_BROKER))
    spec = {"replicas": 1, "selector": _selector(_BROKER), "strategy": {"type": "Recreate"}, "template": pod}
    yield _object("apps/v1", "Deployment", _BROKER, namespace, {"spec": spec}, _labels(_BROKER))
    ports = [
        {"name": "services", "port": BROKER_PORT, "targetPort": "services"},
        {"name": "devices", "port": BROKER_PORT + 1, "targetPort": "devices"},
    ]
    yield _object("v1", "Service", _BROKER, namespace, {"spec": {"selector": _labels(_BROKER), "ports": ports}}, _labels(_BROKER))


# Who may connect to whom


def _policies(plan: Plan, namespace: str) -> Iterator[Object]:
    def policy(name: str, spec: Object) -> Object:
        return _object("networking.k8s.io/v1", "NetworkPolicy", name, namespace, {"spec": spec})

    yield policy("deny-all", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
    dns: Object = {"to": [{"namespaceSelector": {}}], "ports": [_port(53, "UDP"), _port(53)]}
    yield policy("allow-dns", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [dns]})
    hosts = {one.name: one.host for one in plan.services}
    for one in plan.services:
        ingress: list[Object] = [{"from": [{"namespaceSelector": {}}], "ports": [_port(HEALTH_PORT)]}]  # collectors of metrics
        if one.is_gateway:
            ingress.append({"ports": [_port(GATEWAY_PORT)]})
        elif plan.speaks_http and (callers := [hosts[name] for name in plan.callers(one.name)]):
            ingress.append({"from": [{"podSelector": _selector(*callers)}], "ports": [_port(HTTP_PORT)]})
        spec = {
            "podSelector": _selector(one.host),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": _egress(plan, one, hosts),
        }
        yield policy(one.host, spec)
        if one.on_postgres:
            to_database = {
                "podSelector": _selector(f"{one.host}-migrations"),
                "policyTypes": ["Egress"],
                "egress": [{"ports": [_port(one.postgres_port)]}],
            }
            yield policy(f"{one.host}-migrations", to_database)
    if plan.broker:
        callers = list(hosts.values())
        ingress = [
            {"from": [{"podSelector": _selector(*callers)}], "ports": [_port(BROKER_PORT)]},
            {"ports": [_port(BROKER_PORT + 1)]},
        ]
        yield policy(_BROKER, {"podSelector": _selector(_BROKER), "policyTypes": ["Ingress"], "ingress": ingress})


def _egress(plan: Plan, one: Planned, hosts: Mapping[str, str]) -> list[Object]:
    found: list[Object] = []
    if plan.broker:
        found.append({"to": [{"podSelector": _selector(_BROKER)}], "ports": [_port(BROKER_PORT)]})
    elif plan.broker_url is not None:
        found.append({"ports": [_port(plan.broker_port)]})
    if plan.speaks_http and one.calls:
        found.append({"to": [{"podSelector": _selector(*(hosts[name] for name in one.calls))}], "ports": [_port(HTTP_PORT)]})
    if one.on_postgres:
        found.append({"ports": [_port(one.postgres_port)]})
    if plan.outside_ports:
        found.append({"ports": [_port(number) for number in plan.outside_ports]})
    return found


def _port(number: int, protocol: str = "TCP") -> Object:
    return {"protocol": protocol, "port": number}
