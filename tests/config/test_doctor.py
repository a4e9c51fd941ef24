"""The checks of the doctor that need only files, and no container."""

from pathlib import Path

import pytest

from config.doctor import examine
from config.finding import Finding
from config.load import load
from config.provision import provision
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.sqlite import SqliteDatabase
from tests.broker import Broker
from tests.project import RENTAL, RENTAL_SERVICES
from tests.transports.mqtt.test_limits import answering, silent
from tests.transports.mqtt.test_link_state import played


async def examine_auth(folder: Path, authority: Path) -> dict[str, Finding]:
    """Return the doctor's findings for auth by subject, given the folder of its secrets and that of an authority."""
    transport, auth = "CALLBOARD_TRANSPORT__HTTP__", folder / "auth"
    settings = load(None, {
        "CALLBOARD_TRANSPORT__KIND": "http", "CALLBOARD_DATABASE__FOLDER": str(folder.parent), f"{transport}KEY_FILE": str(auth / "peer-key.json"),
        f"{transport}PEER_KEYS_FILE": str(folder / "shared" / "peer-keys.json"), f"{transport}CA_FILE": str(authority / "shared" / "ca.pem"),
        f"{transport}CERTIFICATE_FILE": str(auth / "certificate.pem"), f"{transport}PRIVATE_KEY_FILE": str(auth / "private-key.pem"),
    })  # fmt: skip
    return {finding.what: finding async for finding in examine(settings, ["auth"])}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    provision(tmp_path / "secrets", RENTAL)
    return tmp_path / "secrets"


async def test_the_doctor_finds_no_fault_in_provisioned_files(secrets: Path) -> None:
    findings = await examine_auth(secrets, secrets)
    assert {finding.state for finding in findings.values()} <= {"ok", "warning"}, findings
    assert {"settings", "limits", "database of auth", "keys"} <= findings.keys()
    assert findings["certificate"].state == "ok"


async def test_a_certificate_of_another_authority_is_a_warning(secrets: Path, tmp_path: Path) -> None:
    provision(tmp_path / "others", RENTAL)
    certificate = (await examine_auth(secrets, tmp_path / "others"))["certificate"]
    assert certificate.state == "warning"
    assert "refuses" in certificate.said


async def test_an_unreadable_authority_is_a_fault(secrets: Path, tmp_path: Path) -> None:
    (tmp_path / "none" / "shared").mkdir(parents=True)
    for content in (None, "not a certificate"):
        if content is not None:
            (tmp_path / "none" / "shared" / "ca.pem").write_text(content)
        assert (await examine_auth(secrets, tmp_path / "none"))["certificate"].state == "fault"


async def test_the_key_of_another_service_is_a_fault(secrets: Path) -> None:
    (secrets / "auth" / "peer-key.json").unlink()
    (secrets / "auth" / "peer-key.json").write_bytes((secrets / "wallet" / "peer-key.json").read_bytes())
    assert (await examine_auth(secrets, secrets))["keys"].state == "fault"


async def examine_broker(folder: Path, **environment: str) -> list[tuple[str, str]]:
    """Return the state and the details of the doctor's findings about the broker."""
    settings = load(None, {
        "CALLBOARD_TRANSPORT__KIND": "mqtt", "CALLBOARD_DATABASE__FOLDER": str(folder),
        **{f"CALLBOARD_TRANSPORT__MQTT__{name.upper()}": value for name, value in environment.items()},
    })  # fmt: skip
    findings = [finding async for finding in examine(settings, ["notices"])]
    return [(finding.state, finding.said) for finding in findings if finding.what == "broker"]


async def test_what_a_broker_cannot_do_is_a_warning(tmp_path: Path) -> None:
    async with Broker(tmp_path, "allow_anonymous true", "retain_available false", "max_qos 0", "max_packet_size 2000") as broker:
        accepted, *warnings = await examine_broker(tmp_path, url=broker.url, heartbeat="0.1")
        assert accepted[0] == "ok"
        assert [state for state, _ in warnings] == ["warning", "warning", "warning"]
        assert "it retains no messages" in warnings[0][1]
        assert "it takes QoS 0 only" in warnings[1][1]
        assert "the broker takes packets of at most 2000 bytes" in warnings[2][1]


async def test_a_broker_that_does_not_speak_mqtt_5_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.doctor.TIMEOUT", 0.3)
    for serve in (answering(b"\x20\x02\x00\x01"), answering(b""), silent):
        async with played(serve) as url:
            ((state, said),) = await examine_broker(tmp_path, url=url, connect_timeout="0.1")
            assert state == "fault"
            assert f"{url} does not speak MQTT 5: " in said


async def test_every_broker_of_a_cluster_is_checked(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker, played(answering(b"\x20\x02\x00\x01")) as old:
        first, second = await examine_broker(tmp_path, urls=f"{old},{broker.url}", heartbeat="0.1")
        assert first[0] == "fault"
        assert (second[0], second[1].startswith(broker.url)) == ("ok", True)


EVENT_5 = (
    "INSERT INTO callboard_cursors (publisher, epoch, seq, event_id, types, stopped) VALUES ('rides', 'e', 5, 'id', '{{}}', {0})"
)
LETTER = "INSERT INTO callboard_dead_letters VALUES ('rides', 'e', 3, 'id', 'rides.RideEnded', '{}', '', '', 5, 'KeyError()')"


@pytest.mark.parametrize(
    ("statements", "state", "said"),
    [
        ([], "ok", "9 events of rides wait"),
        ([EVENT_5.format("NULL")], "ok", "4 events of rides wait"),
        ([EVENT_5.format("NULL"), LETTER], "warning", "1 dead letters: `callboard dead-letters list fleet` shows them; 4 events of rides wait"),
        ([EVENT_5.format("'pruned'"), LETTER], "fault", "stopped: that of rides: pruned: `callboard streams resume fleet rides` lets it continue"),
    ],
)  # fmt: skip
async def test_streams_that_have_stopped_lag_or_left_dead_letters_are_shown(
    tmp_path: Path, statements: list[str], state: str, said: str
) -> None:
    for service, own in (("rides", ["UPDATE callboard_stream_head SET seq = 9"]), ("fleet", statements)):
        database = SqliteDatabase(tmp_path / f"{service}.sqlite")
        await database.open()
        await migrate(database, SCHEMA, "callboard")
        for statement in own:
            await database.execute(statement)
        await database.close()
    chosen = {"CALLBOARD_DATABASE__FOLDER": str(tmp_path), "CALLBOARD_SERVICES": RENTAL_SERVICES}
    found = [finding async for finding in examine(load(None, chosen), ["fleet"]) if finding.what == "streams of fleet"]
    assert found == [Finding("streams of fleet", state, said)]  # type: ignore[arg-type]
