"""The phase from exec to ready on the real user manager, with systemctl alone: no daemon of ours is there."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from cortexd.names import hint_folder, unit_name
from cortexd.startup import touch
from cortexd.units.render import HINT_FILE
from tests.support.units import UnitLab, properties, systemctl
from tests.support.wait import until
from tests.units.test_life import begin, end, log_of, until_status

SHORT = "[Service]\nTimeoutStartSec=2\n"
"""The least that the waiter's extensions have to make up for; without them systemd ends such a start (see below)."""


def hint(name: str) -> Path:
    """What cortexd would touch."""
    return Path(os.environ["XDG_RUNTIME_DIR"], hint_folder(name), HINT_FILE)


def touching(name: str, stop: threading.Event) -> None:
    """As cortexd does, more often."""
    while not stop.wait(0.1):
        touch(hint(name))


def test_a_slow_start_that_gets_on_outlives_the_unit_s_time(unit_lab: UnitLab) -> None:
    """The hint is seen inside the sandbox, though the folder where it lies is hidden."""
    gate, stop = unit_lab.gate("slow"), threading.Event()
    unit_lab.define(
        "slow", "--fake-gate", str(gate), health__startup_stall_seconds=1, health__startup_timeout_seconds=60
    )
    unit_lab.drop_in("slow", SHORT)
    start = begin("slow")
    until(hint("slow").parent.is_dir, "the folder that systemd makes")
    toucher = threading.Thread(target=touching, args=("slow", stop))
    toucher.start()
    until_status(unit_lab, "slow", "(5 s")
    assert unit_lab.state("slow")["SubState"] == "start-post"
    gate.write_text("open")
    assert end(start) == 0
    stop.set()
    toucher.join()
    systemctl("stop", unit_name("slow"))
    assert not hint("slow").parent.exists()  # systemd takes it away


def test_without_the_waiter_s_word_systemd_would_have_ended_it(unit_lab: UnitLab) -> None:
    """Nothing moves, and the waiter has more time than systemd gives it: this is what an extension changes."""
    unit_lab.define("cut", "--fake-gate", str(unit_lab.gate("cut")), Restart="no", health__startup_stall_seconds=60)
    unit_lab.drop_in("cut", "[Service]\nTimeoutStartSec=1\n")
    assert unit_lab.start("cut", check=False).returncode != 0
    assert unit_lab.state("cut")["Result"] == "timeout"


def test_a_start_that_stalls_is_given_up_with_the_reason(unit_lab: UnitLab) -> None:
    unit_lab.define(
        "stalls", "--fake-gate", str(unit_lab.gate("stalls")), Restart="no", health__startup_stall_seconds=1
    )
    assert unit_lab.start("stalls", check=False).returncode != 0
    reason = "no sign of progress for 1 s (/health: Connection refused)"
    state = unit_lab.state("stalls")
    assert (state["ActiveState"], state["StatusText"]) == ("failed", f"Not ready: {reason}")
    until(lambda: reason in log_of("stalls"), "the reason in the journal")


def test_a_server_cannot_touch_its_own_hint_nor_see_another_s(unit_lab: UnitLab) -> None:
    folder = hint("curious").parent
    (out := unit_lab.folder / "curious-out").mkdir()
    commands = {"own": f"ls -d {folder}", "touch": f"touch {folder}/{HINT_FILE}", "all": f"ls {folder.parent}"}
    (out / "commands").write_text(json.dumps(commands))
    unit_lab.define("curious", "--fake-run", str(out / "commands"), ReadWritePaths=[str(out)])
    unit_lab.define("other")
    unit_lab.start("other")
    unit_lab.start("curious")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["curious", "other"]
    found = json.loads((out / "commands.out").read_text())
    assert found["own"][0] == 0 and found["touch"][0] != 0 and "Read-only" in found["touch"][1]
    assert found["all"][1] == "curious\n"


@pytest.mark.parametrize("name", ["odd:name", "a.b_c-d"])
def test_names_that_a_folder_must_not_have(unit_lab: UnitLab, name: str) -> None:
    unit_lab.define(name)
    unit_lab.start(name)
    assert hint(name).parent.is_dir()
    assert properties(unit_name(name), "RuntimeDirectory")["RuntimeDirectory"] == hint_folder(name)


def test_a_waiter_that_reads_a_big_file_does_not_hold_up_a_stop(unit_lab: UnitLab) -> None:
    """A model that Ollama is to be given: the sum of the file is made in here."""
    big = unit_lab.folder / "big.gguf"
    subprocess.run(["truncate", "--size=200G", str(big)], check=True)
    unit_lab.define("big")
    file = unit_lab.scope.unit_folder / unit_name("big")
    load = f'"--hint" %t/{hint_folder("big")}/{HINT_FILE} "--load" "ollama" "--model" "x" "--from" "{big}"'
    text = file.read_text()
    changed = text.replace(f'"--hint" %t/{hint_folder("big")}/{HINT_FILE}', load)
    assert changed != text
    file.write_text(changed)
    systemctl("daemon-reload")
    start = begin("big")
    until_status(unit_lab, "big", "Reading big.gguf")
    systemctl("stop", unit_name("big"))
    assert end(start) != 0
    state = unit_lab.state("big")
    assert (state["ActiveState"], state["Result"], state["MainPID"]) == ("inactive", "success", "0")
