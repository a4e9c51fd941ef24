"""Access rules for brokers, derived from what the services declare: access lists and password files of mosquitto, and rules of EMQX.

Each service is a user of the broker, named after its contract. It may publish to the services that it calls and that call it,
and only under its own name; in this way the broker authenticates `ctx.caller`. A device is a user named after its key, and may
use only its own signals.

Services and devices have separate listeners, each with its own lists. A service has several nodes, and so several client ids
under one user name; a device has one connection, whose client id is its user name (`use_username_as_clientid`). So a device
cannot connect with the client id of another device or of a node, which would disconnect that one.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from runtime import Struct
from runtime.identity import identity
from runtime.service.service import Definition
from transports.mqtt.topics import VERSION

_ITERATIONS = 101
"""The default of mosquitto_passwd. More are not needed, because these passwords are random."""


_MOSQUITTO = {"publish": "write", "subscribe": "read"}


class DeviceRights(Struct):
    """The signals that a device may publish (`says`) and receive (`hears`) under its own key: full names, such as `fleet.Telemetry`."""

    says: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()


class Rule(NamedTuple):
    """What a user may do: publish to a topic, or subscribe to a topic filter. `%u` is the user's name, and `%c` the client id."""

    action: Literal["publish", "subscribe"]
    topic: str


def service_rules(
    definitions: Sequence[Definition], namespace: str, *, proxies: Sequence[str] = ("gateway",)
) -> dict[str, list[Rule]]:
    """Return the rules of each service, by its name. What they do not name is refused.

    Args:
        definitions: The definitions of all services.
        proxies: The services that may call every service and receive every multicast, such as a gateway.
    """
    root = f"{namespace}/{VERSION}"
    peers = _peers(definitions, proxies)
    rules: dict[str, list[Rule]] = {}
    for definition in definitions:
        user = definition.contract.name
        readable = _readable(definition, everything=user in proxies)
        writable = _writable(definition, definitions, sorted(peers[user]))
        rules[user] = [
            *(Rule("subscribe", f"{root}/{topic}") for topic in readable),
            *(Rule("publish", f"{root}/{topic}") for topic in writable),
        ]
    return rules


def common_rules(namespace: str) -> list[Rule]:
    """Return the rules of every service: its own inboxes, and its Will."""
    root = f"{namespace}/{VERSION}"
    return [
        Rule("subscribe", f"{root}/inbox/%u/%c/+"),
        Rule("subscribe", f"{root}/inbox/runtime/%c/+"),
        Rule("publish", f"{root}/gone/%c"),
    ]


def access_list(definitions: Sequence[Definition], namespace: str, *, proxies: Sequence[str] = ("gateway",)) -> str:
    """Return the text of the `acl_file` of the services' listener. The broker refuses everything that it does not name.

    Takes the same arguments as `service_rules`.
    """
    lines = [f"pattern {_MOSQUITTO[rule.action]} {rule.topic}" for rule in common_rules(namespace)]
    for user, rules in service_rules(definitions, namespace, proxies=proxies).items():
        lines += ["", f"user {user}", *(f"topic {_MOSQUITTO[rule.action]} {rule.topic}" for rule in rules)]
    return "\n".join(lines) + "\n"


def dynamic_security(definitions: Sequence[Definition], namespace: str, passwords: Mapping[str, str]) -> str:
    """Return the text of the `config_file` of mosquitto's dynamic security plugin, with the same rules as `access_list`.

    The plugin does not know `%u` and `%c`, and wants the filter of a shared group as a client sends it.

    Args:
        passwords: the password of each service. Only their hashes are in the text.
    """
    clients: list[dict[str, Any]] = []
    roles: list[dict[str, Any]] = []
    for user, rules in service_rules(definitions, namespace).items():
        acls = [acl for rule in [*common_rules(namespace), *rules] for acl in _dynamic(rule, user)]
        roles.append({"rolename": user, "acls": acls})
        salt = hashlib.sha256(f"salt {passwords[user]}".encode()).digest()[:12]  # the same each time; the password is random
        clients.append(
            {
                "username": user,
                "password": base64.b64encode(_digest(passwords[user], salt)).decode(),
                "salt": base64.b64encode(salt).decode(),
                "iterations": _ITERATIONS,
                "roles": [{"rolename": user}],
            }
        )
    otherwise = {"publishClientSend": False, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    document = {"defaultACLAccess": otherwise, "groups": [], "clients": clients, "roles": roles}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _dynamic(rule: Rule, user: str) -> Iterator[dict[str, Any]]:
    topic = rule.topic.replace("%u", user).replace("%c", "+")
    kind = "publishClientSend" if rule.action == "publish" else "subscribePattern"
    shared = rule.action == "subscribe" and topic.split("/")[2] in ("request", "signal")
    for one in (topic, f"$share/{user}/{topic}") if shared else (topic,):
        yield {"acltype": kind, "topic": one, "priority": 0, "allow": True}


def emqx_rules(definitions: Sequence[Definition], namespace: str) -> str:
    """Return the text of EMQX's `acl.conf`, with the same rules as `access_list`. Its users are in another place of EMQX."""
    lines = ["%% Set authorization.no_match to deny, and let only users that EMQX has authenticated connect."]
    for user, rules in service_rules(definitions, namespace).items():
        for rule in [*common_rules(namespace), *rules]:
            topic = rule.topic.replace("%u", "${username}").replace("%c", "${clientid}")
            lines.append(f'{{allow, {{username, "{user}"}}, {rule.action}, ["{topic}"]}}.')
    return "\n".join([*lines, "{deny, all}."]) + "\n"


def device_access_list(rights: DeviceRights, namespace: str) -> str:
    """Return the text of the `acl_file` of the devices' listener, whose client ids are the user names."""
    root = f"{namespace}/{VERSION}"
    lines = [f"pattern read {root}/inbox/%u/%c/+"]
    lines += [f"pattern write {root}/{_signal(name)}/%u" for name in rights.says]
    lines += [f"pattern read {root}/{_signal(name)}/%u" for name in rights.hears]
    return "\n".join(lines) + "\n"


def _peers(definitions: Sequence[Definition], proxies: Sequence[str]) -> dict[str, set[str]]:
    """Return the services with which each service exchanges requests and replies."""
    peers: dict[str, set[str]] = {definition.contract.name: set() for definition in definitions}
    for definition in definitions:
        user = definition.contract.name
        for other in peers if user in proxies else definition.needs & peers.keys():
            peers[user].add(other)
            peers[other].add(user)
    return peers


def _readable(definition: Definition, *, everything: bool) -> Iterator[str]:
    user = definition.contract.name
    yield "presence/+/+"
    yield "gone/+"
    yield f"request/{user}/+/+"
    if everything:
        yield from ("stream/+", "signal/+/+/+")
        return
    yield from (f"stream/{publisher}" for publisher in sorted({name.partition(".")[0] for name in definition.events}))
    yield from (f"{_signal(name)}/+" for name in sorted(definition.signals))
    yield f"signal/{identity.name}/+/+"  # every node receives revocations


def _writable(definition: Definition, definitions: Sequence[Definition], peers: Iterable[str]) -> Iterator[str]:
    user = definition.contract.name
    yield f"presence/{user}/+"
    yield f"stream/{user}"
    yield f"signal/{user}/+/+"
    for other in definitions:
        for name, handler in other.signals.items():
            if user in handler.allow.services and not name.startswith(f"{user}."):
                yield f"{_signal(name)}/+"
    for peer in peers:
        yield f"inbox/{peer}/+/{user}"
        yield f"request/{peer}/+/{user}"
    yield f"inbox/{identity.name}/+/runtime"  # every node asks for keys and revocations under this name
    if user == identity.name:
        yield f"inbox/runtime/+/{user}"


def _signal(name: str) -> str:
    return f"signal/{name.replace('.', '/')}"


def password_file(passwords: Mapping[str, str]) -> str:
    """Return the text of a `password_file`, hashed as mosquitto 2 does it (PBKDF2 with SHA-512)."""
    return "".join(f"{user}:{_hashed(password)}\n" for user, password in passwords.items())


def _hashed(password: str) -> str:
    salt = os.urandom(12)
    digest = _digest(password, salt)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS, 64)
