"""Who gets to see a model's key: only a socket of the model's own unit."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cortexd import door
from cortexd.door import Door, who_answers
from cortexd.health.probe import Questions
from cortexd.secrets import Secrets
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.protocol import UnitState
from cortexd.waiter.sockets import Listener, own_group

URL = "http://127.0.0.1:8000"
OWN, OTHER, UNKNOWN = -1, 7, 0
CANNOT = "it cannot be told who listens on port 8000, since its unit has no control group"
HELD = "port 8000 is held by a process outside its unit (user 1000)"


@pytest.mark.parametrize(
    ("group", "found", "expected"),
    [
        ("/own", [OWN], (True, "")),
        ("/own", [OWN, OWN], (True, "")),
        ("/own", [], (False, "")),
        ("/own", [OTHER], (False, HELD)),
        ("/own", [OWN, OTHER], (False, HELD)),
        # A kernel that does not tell: no reason not to ask, and none to show the key.
        ("/own", [UNKNOWN], (False, "")),
        ("/own", [OWN, UNKNOWN], (False, "")),
        ("", [UNKNOWN], (False, "")),
        # Between two runs, and after the end of one.
        ("", [OTHER], (False, CANNOT)),
        ("/gone", [OTHER], (False, CANNOT)),
        ("/gone", [OWN], (False, CANNOT)),
        ("/gone", [], (False, "")),
    ],
)
def test_who_gets_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, found: list[int], expected: tuple[bool, str]
) -> None:
    (tmp_path / "own").mkdir()
    own = (tmp_path / "own").stat().st_ino
    sockets = [Listener("127.0.0.1", 8000, 1000, 1, own if cgroup == OWN else cgroup) for cgroup in found]
    monkeypatch.setattr(door, "_hierarchy", lambda: tmp_path)
    monkeypatch.setattr(door, "answering", lambda address, port: sockets)
    assert who_answers(URL, group) == expected

    class Keys:
        def value(self, name: str, variable: str) -> str:
            return "s3cret"

    class Served:
        name, url = "a", URL

    looked = Door(cast(Any, Keys()), cast(Any, None))._look(cast(Any, Served()), "KEY", group, "from env")
    assert looked == ("s3cret" if expected[0] else "", expected[1])


@pytest.mark.parametrize(
    ("secrets", "env", "token"),
    [
        ({}, (), ""),
        ({"KEY": "s3cret"}, (), "s3cret"),
        ({}, ("KEY=given=so",), "given=so"),
        ({"KEY": "s3cret"}, ("KEY=given",), "s3cret"),  # as in its unit
        ({"OTHER": "x"}, ("OTHERKEY=x", "KEY="), ""),
    ],
)
async def test_the_key_is_the_one_that_the_server_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str], env: tuple[str, ...], token: str
) -> None:
    """Wherever it was given: as a secret, or with the setting env, of which there is a warning."""
    monkeypatch.setattr(door, "who_answers", lambda url, group: (True, ""))
    kept = Secrets(tmp_path / "secrets")
    for key, value in secrets.items():
        kept.set("a", key, value.encode())
    model = SimpleNamespace(
        name="a", url=URL, endpoint="/health", questions=Questions(), unit="cortex-a.service",
        plan=SimpleNamespace(api_key="KEY"), spec=SimpleNamespace(env=env), definition=SimpleNamespace(secrets=kept.known("a")),
    )  # fmt: skip
    units = SimpleNamespace(cached=lambda unit: UnitState(unit=unit, control_group="/own"))
    found = await Door(kept, cast(Any, units)).server(cast(Any, model))
    assert (found.token, found.stranger) == (token, "")


def test_a_unix_socket_is_as_good_as_a_port(tmp_path: Path) -> None:
    path, group = tmp_path / "a.sock", own_group()
    root = mount_point(Path("/proc/self/mountinfo").read_text())
    assert group is not None and root is not None
    ours = f"/{group.relative_to(root)}"
    assert who_answers(f"unix:{path}", ours) == (False, "")  # nobody is there
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert who_answers(f"unix:{path}", ours) == (False, "")
        listening.listen()
        assert who_answers(f"unix:{path}", ours) == (True, "")
        held = f"{path} is held by a process outside its unit (user {os.getuid()})"
        assert who_answers(f"unix:{path}", f"/{group.parent.relative_to(root)}") == (False, held)
