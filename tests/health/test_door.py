"""Who gets to see a model's key: only a socket of the model's own unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from cortexd import door
from cortexd.door import Door, who_answers
from cortexd.waiter.sockets import Listener

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
    monkeypatch.setattr(door, "mount_point", lambda text: tmp_path)
    monkeypatch.setattr(door, "listeners", lambda port: sockets)
    assert who_answers(URL, group) == expected

    class Keys:
        def value(self, name: str, variable: str) -> str:
            return "s3cret"

    class Served:
        name, url = "a", URL

    looked = Door(cast(Any, Keys()), cast(Any, None))._look(cast(Any, Served()), "KEY", group)
    assert looked == ("s3cret" if expected[0] else "", expected[1])
