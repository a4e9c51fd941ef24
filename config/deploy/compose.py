"""A deployment for compose, on docker or podman: a container for each service, and a balancer in front of the gateways."""

from typing import Any

import msgspec

from config.deploy.mosquitto import CONFIGURATION
from config.deploy.plan import BROKER_USER, GATEWAY_PORT, USER, Plan, Planned

Object = dict[str, Any]

_BROKER = "mosquitto"
_BALANCER_USER = 99
"""The user of the image of HAProxy."""
_STOP_MARGIN = 2

_BALANCER = """\
# Distributes the connections of clients over the gateways. A gateway that stops says so in /readyz before it does.
global
  log stderr format raw local0 notice
defaults
  mode http
  log global
  option redispatch
  option httpslog
  retries 3
  timeout connect 2s
  timeout client 75s
  timeout server 75s
  timeout tunnel 1h
resolvers containers
  parse-resolv-conf
  hold valid 1s
  hold obsolete 1s
frontend clients
  bind :{port}
  option forwardfor
  default_backend gateways
backend gateways
  balance leastconn
  option httpchk GET /readyz
  retry-on conn-failure empty-response
  default-server check inter 1s fall 2 rise 1 resolvers containers init-addr none
  server-template gateway {most} gateway:{port}
"""


def files(plan: Plan) -> dict[str, bytes]:
    """Return `compose.yaml` and the files that it mounts, by their names."""
    hardened: Object = {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "networks": ["inside"],
    }
    services: Object = {}
    if plan.broker:
        services[_BROKER] = {
            "image": "docker.io/library/eclipse-mosquitto:2",
            "user": f"{BROKER_USER}:{BROKER_USER}",
            **hardened,
            "stop_grace_period": "10s",
            "volumes": ["./mosquitto.conf:/mosquitto/config/mosquitto.conf:ro", "./secrets/mosquitto:/run/secrets:ro"],
        }
    for one in plan.services:
        services[one.host] = _service(plan, one, hardened)
    services["balancer"] = {
        "image": "docker.io/library/haproxy:lts",
        "user": f"{_BALANCER_USER}:{_BALANCER_USER}",
        **hardened,
        "networks": ["inside", "outside"],
        "ports": [f"${{PORT:-{GATEWAY_PORT}}}:{GATEWAY_PORT}"],
        "volumes": ["./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"],
    }
    needs_outside = plan.needs_postgres or plan.outside_ports or (plan.broker_url is not None and not plan.broker)
    inside: Object = {} if needs_outside else {"internal": True}
    document: Object = {
        "name": "callboard",
        "services": services,
        "networks": {"inside": inside, "outside": {}},
        "volumes": {f"{one.host}-data": {} for one in plan.services if one.has_file},
    }
    found = {"compose.yaml": msgspec.yaml.encode(document), "haproxy.cfg": _BALANCER.format(port=GATEWAY_PORT, most=16).encode()}
    return found | ({"mosquitto.conf": CONFIGURATION.encode()} if plan.broker else {})


def _service(plan: Plan, one: Planned, hardened: Object) -> Object:
    data = f"{one.host}-data:/data" if one.has_file else None
    return {
        "image": plan.image,
        "command": ["run", one.name],
        "user": f"{USER}:{USER}",
        **hardened,
        "environment": {name: value.replace("$", "$$") for name, value in {**plan.environment, **one.environment}.items()},
        "volumes": [f"./secrets/{one.name}:/run/secrets:ro", "./secrets/shared:/run/shared:ro", *([data] if data else [])],
        **({} if one.has_file else {"tmpfs": [f"/data:uid={USER},gid={USER},mode=700"]}),
        **({"deploy": {"replicas": one.replicas}} if one.replicas > 1 else {}),
        **({"depends_on": [_BROKER]} if plan.broker else {}),  # it stops after all that still answer through it
        "stop_grace_period": f"{one.grace + _STOP_MARGIN}s",
        **({"networks": ["inside", "outside"]} if one.on_postgres else {}),
    }
