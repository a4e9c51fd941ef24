"""The checks of the doctor that need only files, and no container."""

from pathlib import Path

import pytest

from config.doctor import Finding, examine
from config.load import load
from config.provision import provision
from config.settings import Settings


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
    provision(tmp_path / "secrets", Settings())
    return tmp_path / "secrets"


async def test_the_doctor_finds_no_fault_in_provisioned_files(secrets: Path) -> None:
    findings = await examine_auth(secrets, secrets)
    assert {finding.state for finding in findings.values()} <= {"ok", "warning"}, findings
    assert {"settings", "limits", "database of auth", "keys"} <= findings.keys()
    assert findings["certificate"].state == "ok"


async def test_a_certificate_of_another_authority_is_a_warning(secrets: Path, tmp_path: Path) -> None:
    provision(tmp_path / "others", Settings())
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
