"""Compose files and units for systemd: what they start, what they keep secret, and what systemd and HAProxy say of them."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from config.values import holds_secret
from runtime import CallboardError, Struct
from tests.config.deploy.project import deploy
from tests.project import RENTAL

SERVICES = ("auth", "wallet", "fleet", "rides", "notices", "devices", "gateway")
ANALYZE, HAPROXY = shutil.which("systemd-analyze"), shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def test_compose_starts_every_service_and_a_balancer(way: str, tmp_path: Path) -> None:
    deploy("compose", tmp_path / "out", "--image", "registry.example/rental:7")
    document = msgspec.yaml.decode((tmp_path / "out" / "compose.yaml").read_bytes())
    services = document["services"]
    assert services.keys() - {"mosquitto"} == {*SERVICES, "balancer"}
    on_postgres = way in ("postgres", "http")
    for name in SERVICES:
        one = services[name]
        assert (one["image"], one["command"], one["read_only"], one["cap_drop"]) == (
            "registry.example/rental:7",
            ["run", name],
            True,
            ["ALL"],
        )
        assert "ports" not in one, "only the balancer is reached from outside"
        assert one.get("deploy", {}).get("replicas", 1) == (2 if on_postgres or name == "gateway" else 1)
        assert int(one["stop_grace_period"].rstrip("s")) > RENTAL.node.drain_timeout
        for mount in one["volumes"]:
            source = mount.partition(":")[0]
            assert (tmp_path / "out" / source).is_dir() if source.startswith("./") else source in document["volumes"]
    assert list(services["balancer"]["ports"]) == ["${PORT:-8000}:8000"]
    used = {mount.partition(":")[0] for one in services.values() for mount in one["volumes"] if not mount.startswith(".")}
    assert used == document["volumes"].keys()


@pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")
def test_the_balancer_accepts_its_configuration(way: str, tmp_path: Path) -> None:
    deploy("compose", tmp_path / "out")
    assert HAPROXY is not None
    done = subprocess.run([HAPROXY, "-c", "-f", tmp_path / "out" / "haproxy.cfg"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def units(folder: Path) -> dict[str, configparser.ConfigParser]:
    found: dict[str, configparser.ConfigParser] = {}
    for path in (*folder.glob("*.service"), *folder.glob("*.target")):
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read(path)
        found[path.name] = parser
    return found


def test_a_unit_for_each_service_has_its_secrets_alone(way: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deploy("systemd", out)
    found = units(out)
    names = {f"callboard-{name}{'@' if name == 'gateway' else ''}.service" for name in SERVICES}
    assert found.keys() - {"callboard-broker.service", "callboard.target"} == names
    wanted = found["callboard.target"]["Unit"]["Wants"].split()
    assert {"callboard-gateway@01.service", "callboard-gateway@02.service", "callboard-wallet.service"} <= set(wanted)
    install = (out / "install.sh").read_text()
    assert all(unit in install for unit in wanted)
    for name in SERVICES:
        text = (out / f"callboard-{name}{'@' if name == 'gateway' else ''}.service").read_text()
        for line in text.splitlines():
            if line.startswith("LoadCredential="):
                file = line.rpartition("/")[2]
                assert line == f"LoadCredential={file}:/etc/callboard/secrets/{name}/{file}"
                assert (out / "secrets" / name / file).is_file()
            elif "=%d/" in line:
                assert f"LoadCredential={line.rpartition('/')[2]}:" in text, "a file that the unit has"
        environment = (out / f"{name}.env").read_text()
        assert "/run/secrets/" not in text + environment
        assert ("ExecStartPre=/opt/callboard/bin/callboard migrate" in text) is (
            way in ("postgres", "http") and name != "gateway"
        )
        assert f"ExecStart=/opt/callboard/bin/callboard run {name}\n" in text
    ports = [line for name in SERVICES for line in (out / f"{name}.env").read_text().splitlines() if "HEALTH__PORT" in line]
    assert len(set(ports)) == len(ports) == len(SERVICES) - 1, "each service has a health endpoint of its own"


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")
def test_systemd_says_nothing_against_the_units(way: str, tmp_path: Path) -> None:
    out, checked = tmp_path / "out", tmp_path / "checked"
    deploy("systemd", out)
    checked.mkdir()
    for path in (*out.glob("*.service"), *out.glob("*.target")):
        text = path.read_text().replace("/opt/callboard/bin/callboard", sys.executable)
        (checked / path.name).write_text(text)
    assert ANALYZE is not None
    names = [str(path).replace("@.", "@1.") for path in sorted(checked.iterdir())]
    done = subprocess.run([ANALYZE, "verify", *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "its status is 0 for keys that it does not know, too"


def test_a_secret_setting_of_a_service_becomes_a_file_of_that_service(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "CALLBOARD_SERVICES__AUTH__SETTINGS__USERS", '[{"email":"a@example.com","role":"admin","password":"a long secret"}]'
    )
    deploy("systemd", tmp_path / "out")
    users = (tmp_path / "out" / "secrets" / "auth" / "users").read_text()
    assert "a long secret" in users
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_file() and "a long secret" in path.read_text()]


def test_without_services_there_is_nothing_to_deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallboardError, match="no project here"):
        deploy("compose", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(CallboardError, match=r"cannot be made: .*: choose another folder with --output"):
        deploy("compose", tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["network", "settings", "shared", "mosquitto", "balancer", "broker", "migrations", "deny-all"])
def test_a_service_with_the_name_of_another_part_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts.py").write_text(
        f"from runtime import Contract, Service\nclass Part(Service):\n    contract = Contract({name!r})\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CALLBOARD_SERVICES", "parts:Part")
    sys.modules.pop("parts", None)
    with pytest.raises(CallboardError, match=f"a service called '{name}' cannot be deployed beside another part of that name"):
        deploy("kubernetes", tmp_path / "out")


@pytest.mark.parametrize("more", [["--namespace", "Foo Bar"], ["--image", ""], ["--image", "a b"]])
def test_names_that_kubernetes_would_refuse_are_refused(more: list[str], way: str, tmp_path: Path) -> None:
    with pytest.raises(CallboardError, match="expected"):
        deploy("kubernetes", tmp_path / "out", *more)


class _Key(Struct):
    __secret__: ClassVar = frozenset({"secret"})

    secret: str


class _Keyed(Struct):
    key: _Key


@pytest.mark.parametrize("tp", [list[_Key], tuple[_Keyed, ...], dict[str, _Keyed], _Keyed | None, list[dict[str, _Key]]])
def test_secrets_in_structs_are_secret_at_any_depth(tp: Any) -> None:
    assert holds_secret(tp)
    assert not holds_secret(list[str])
