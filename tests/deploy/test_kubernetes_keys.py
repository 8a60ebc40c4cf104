"""The private key of components/clouds, as a kubelet shows it to a pod that is not root: root's file, lent to the pod's group."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import asyncssh
import pytest

from services.kit.ssh import keys
from services.kit.ssh.keys import read_client_key
from tests.deploy.kube import named

USER, STRANGERS = 10_001, 10_002


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "id_ed25519"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path))
    return path


def shown(
    monkeypatch: pytest.MonkeyPatch, mode: int, *, owner: int = 0, group: int = USER, as_user: int = USER
) -> None:
    """Let files be of this owner and mode, and this process be that of a pod."""
    status = SimpleNamespace(st_mode=stat.S_IFREG | mode, st_uid=owner, st_gid=group)
    here = {"fstat": lambda descriptor: status, "geteuid": lambda: as_user, "getegid": lambda: USER, "getgroups": list}
    monkeypatch.setattr(keys, "os", SimpleNamespace(**vars(os) | here))


@pytest.mark.parametrize("role", ["planner", "runner"])
def test_the_key_of_the_component_is_read(role: str, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = named("overlays/example", "Deployment", role)["spec"]["template"]["spec"]
    (volume,) = (one["secret"] for one in pod["volumes"] if one["name"] == "ssh")
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (USER, USER)
    # With an fsGroup a kubelet gives the group what the owner may read, whatever the mode says.
    shown(monkeypatch, volume["defaultMode"] | 0o440, group=security["fsGroup"])
    assert read_client_key(str(key_file)).get_algorithm() == "ssh-ed25519"


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        (0o444, {}),
        (0o460, {}),
        (0o450, {}),
        (0o440, {"group": STRANGERS}),
        (0o440, {"owner": USER}),
        (0o440, {"as_user": 0}),
    ],
)
def test_a_key_that_others_may_read_or_change_is_refused(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, mode: int, change: dict[str, int]
) -> None:
    shown(monkeypatch, mode, **change)
    with pytest.raises(ValueError, match=f"mode {mode:04o}"):
        read_client_key(str(key_file))
