"""Credentials for containers: their permissions, and when they are created."""

import os
import stat
from pathlib import Path

import pytest

from config.provision import provision
from config.settings import Settings
from runtime import CallboardError


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_secrets_have_safe_permissions_under_every_umask(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "secrets"
    before = os.umask(umask)
    try:
        assert provision(folder, Settings())
        assert not provision(folder, Settings()), "nothing is missing, so nothing is created"
    finally:
        os.umask(before)
    modes = {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes.pop(".") == 0o700, "other users of this machine cannot open the folder"
    assert modes.pop("password") == 0o600
    assert {mode for name, mode in modes.items() if (folder / name).is_dir()} == {0o755}, (
        "the folders inside are readable when mounted in a container"
    )
    assert {mode for name, mode in modes.items() if (folder / name).is_file()} == {0o444}


def test_a_missing_secret_renews_all_secrets_and_removes_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    provision(folder, Settings())
    first = (folder / "wallet" / "peer-key.json").read_text()
    (folder / "fleet" / "mqtt-password").unlink()
    assert provision(folder, Settings())
    assert (folder / "fleet" / "mqtt-password").read_text()
    assert (folder / "wallet" / "peer-key.json").read_text() != first
    other = tmp_path / "shared"
    other.mkdir()
    (other / "precious").touch()
    for wrong in (tmp_path, other):
        with pytest.raises(CallboardError, match="has other files in it"):
            provision(wrong, Settings())
    assert (other / "precious").exists()
