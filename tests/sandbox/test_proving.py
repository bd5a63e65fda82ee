"""When sandboxes are tried, what is kept of it, and what follows where a machine refuses: on a stand-in for the units."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cortexd.errors import InvalidConfig, UnitFailed
from cortexd.names import MAX_MODELS
from cortexd.sandbox.attempts import ATTEMPTS
from cortexd.sandbox.proving import Prover
from cortexd.sandbox.trial import Look
from cortexd.systemd.protocol import UnitState
from tests.support.house import ME, House


class Machine:
    """What units of ours come to."""

    def __init__(self) -> None:
        self.namespaces = True
        self.broken = False
        self.through: set[str] = set()
        self.unfit = ""
        """The begin of a line with which systemd sets up no unit."""
        self.ran: list[str] = []
        """What was tried, but for what lacks some lines of the one before."""
        self.apart: list[set[str]] = []
        """The lines that those lacked."""
        self._whole: list[str] = []

    async def run(self, name: str, make: Callable[[], Look]) -> UnitState:
        look = make()
        if name != "namespaces" and look.lines and set(look.lines) < set(self._whole):
            self.apart.append({*self._whole} - {*look.lines})
        else:
            self.ran.append(name if look.lines else f"{name}-free")
            self._whole = [*look.lines] or self._whole
        if self.broken:
            raise UnitFailed("systemd does not want to")
        if self.unfit and any(line.startswith(self.unfit) for line in look.lines):
            return UnitState(unit=name, active_state="failed", result="exit-code", exec_main_status=228)
        if "PrivateUsers=true" in look.lines and not self.namespaces:
            return UnitState(unit=name, active_state="failed", result="exit-code", exec_main_status=226)
        free = not look.lines
        said = " ".join(f"{a}:{0 if free or a in self.through else 1}" for a in ATTEMPTS)
        return UnitState(unit=name, active_state="active", status_text=said)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr("cortexd.sandbox.trial.Trials.run", lambda _, name, make: found.run(name, make))
    return found


def prover_of(house: House) -> Prover:
    prover = house.manager._examiner.prover
    prover._known = False
    return prover


def warnings(house: House) -> str:
    return "\n".join(house.manager.catalog.get("a").warnings)


async def test_tried_once_and_kept_for_the_next_daemon(house: House, machine: Machine) -> None:
    await house.register()
    prover_of(house)
    await house.manager.prove()
    assert machine.ran == ["namespaces", "a", "a-free"]
    assert not machine.apart
    await house.manager.security("a")
    apart = len(machine.apart)
    assert len(machine.ran) == 3 and apart > 10
    await house.manager.security("a")
    assert len(machine.apart) == apart
    await house.manager.security("a", again=True)
    assert (len(machine.ran), len(machine.apart)) == (6, 2 * apart)
    await house.close()
    await house.open()
    await house.manager.prove()
    await house.manager.security("a")
    assert (len(machine.ran), len(machine.apart)) == (6, 2 * apart)
    await house.manager.set("a", {"PrivateTmp": "no"}, ME)  # another sandbox
    await house.manager.security("a")
    assert machine.ran[6:] == ["a", "a-free"]


async def test_a_change_is_answered_with_what_is_in_force_of_it(house: House, machine: Machine) -> None:
    await house.register()
    prover_of(house)
    await house.manager.prove()
    machine.through.add("see-tmp")
    _, told = await house.manager.set("a", {"UMask": "0077"}, ME)
    assert "sandbox: PrivateTmp: not in force on this machine" in told
    _, told = await house.manager.set("a", {"PrivateTmp": "no"}, ME)
    assert not [warning for warning in told if "sandbox" in warning]


async def test_what_was_kept_before_another_boot_is_tried_again(house: House, machine: Machine) -> None:
    await house.register()
    prover_of(house)
    await house.manager.prove()
    kept = house.scope.data / "sandbox.json"
    text = json.loads(kept.read_text())
    kept.write_text(json.dumps({**text, "when": "another"}))
    prover = prover_of(house)
    prover._proofs.clear()
    await prover.load()
    await house.manager.security("a")
    assert len(machine.ran) == 6
    assert (kept.stat().st_mode & 0o777, json.loads(kept.read_text())["when"]) == (0o600, text["when"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"namespaces": 1}',
        '{"when": "x", "namespaces": false, "left_out": [], "proofs": {"a": {"sandbox": []}}, "said": []}',
        '{"when": "x", "namespaces": false, "left_out": [], "proofs": {"a": [0, 1, {}]}, "said": ["a:0"]}',
        '{"when": "x", "namespaces": false, "left_out": [], "proofs": {"a": [0, 0, {}]}, "said": ["a;0"]}',
        '{"when": "x", "namespaces": false, "left_out": ["PrivateUsers"], "proofs": {}, "said": []}',
    ],
)
async def test_a_file_that_we_did_not_write(house: House, machine: Machine, text: str) -> None:
    await house.register()
    (house.scope.data / "sandbox.json").write_text(text)
    prover = prover_of(house)
    await prover.load()
    assert prover._tools.namespaces and not prover._tools.left_out and not prover._proofs
    await house.manager.security("a")
    assert machine.ran == ["namespaces", "a", "a-free"]


async def test_a_link_and_a_pipe_are_not_followed(house: House, machine: Machine, tmp_path: Path) -> None:
    await house.register()
    kept = house.scope.data / "sandbox.json"
    prover = prover_of(house)
    os.mkfifo(kept)
    await prover.load()
    kept.unlink()
    (tmp_path / "elsewhere").write_text("mine")
    kept.symlink_to(tmp_path / "elsewhere")
    await prover.load()
    await house.manager.security("a")
    assert (tmp_path / "elsewhere").read_text() == "mine" and not kept.is_symlink()


async def test_refused_namespaces_are_left_out_with_a_warning(house: House, machine: Machine) -> None:
    await house.register()
    assert "PrivateUsers=true" in house.path().read_text()
    machine.namespaces = False
    prover_of(house)
    await house.manager.prove()
    text = house.path().read_text()
    assert "PrivateUsers" not in text and "ProtectHome" not in text and "NoNewPrivileges=true" in text
    assert "sandbox: PrivateUsers, " in warnings(house) and "are left out: this machine gives" in warnings(house)
    rows = {row.directive: row.effect.value for row in await house.manager.security("a")}
    assert (rows["PrivateTmp"], rows["NoNewPrivileges"]) == ("not in force", "covered")
    await (await house.start()).wait()
    machine.namespaces = True
    await house.manager.security("a", again=True)
    assert "PrivateUsers=true" in house.path().read_text()
    assert warnings(house) == ""


async def test_the_first_start_waits_until_it_is_known(house: House, machine: Machine) -> None:
    await house.register()
    machine.namespaces = False
    prover_of(house)
    await (await house.start()).wait()
    assert machine.ran == ["namespaces"]
    assert "PrivateUsers" not in house.path().read_text()


async def test_where_the_sandbox_is_required_the_model_does_not_start(house: House, machine: Machine) -> None:
    await house.register(sandbox_required="yes")
    machine.namespaces = False
    prover_of(house)
    with pytest.raises(InvalidConfig, match=r"^a: sandbox_required=yes: this machine gives .* no namespaces"):
        await house.start()
    assert "PrivateUsers=true" in house.path().read_text()  # so that systemd refuses, too
    machine.namespaces = True
    machine.through.add("write-home")
    await house.manager.security("a", again=True)
    with pytest.raises(InvalidConfig, match=r"^a: sandbox_required=yes: ProtectHome: not in force here"):
        await house.start()
    assert "sandbox: ProtectHome: not in force" in warnings(house)
    machine.through.clear()
    await house.manager.security("a", again=True)
    await (await house.start()).wait()


async def test_where_nothing_can_be_tried(house: House, machine: Machine) -> None:
    await house.register()
    machine.broken = True
    prover_of(house)
    await house.manager.prove()
    rows = await house.manager.security("a")
    assert {row.effect.value for row in rows} == {"unknown", "off"}
    assert warnings(house) == "sandbox: what of it is in force is not known: systemd does not want to"
    await (await house.start()).wait()
    await house.manager.set("a", {"sandbox_required": "yes"}, ME)
    await (await house.stop()).wait()
    with pytest.raises(InvalidConfig, match="its sandbox cannot be tried: systemd does not want to"):
        await house.start()


async def test_a_directive_with_which_no_unit_can_be_set_up_is_left_out_with_a_warning(
    house: House, machine: Machine
) -> None:
    await house.register(LockPersonality="yes")
    await house.register("b", LockPersonality="yes", sandbox_required="yes")
    machine.unfit = "LockPersonality="
    prover_of(house)
    await house.manager.prove()
    assert "LockPersonality=" not in house.path().read_text() and "PrivateTmp=true" in house.path().read_text()
    assert "sandbox: LockPersonality are left out: systemd cannot set up a unit with it" in warnings(house)
    rows = {row.directive: row.effect.value for row in await house.manager.security("a")}
    assert (rows["LockPersonality"], rows["PrivateUsers"]) == ("not in force", "covered")
    await (await house.start()).wait()
    assert "LockPersonality=true" in house.path("b").read_text()
    with pytest.raises(
        InvalidConfig, match=r"its sandbox cannot be tried: systemd cannot set it up \(status 228/SECCOMP\)"
    ):
        await house.start("b")
    await house.close()
    await house.open()
    assert "LockPersonality=" not in house.path().read_text()


async def test_what_is_kept_of_as_many_models_as_there_can_be(house: House, machine: Machine) -> None:
    await house.register()
    prover = prover_of(house)
    await house.manager.security("a")
    (proof,) = prover._proofs.values()
    assert proof.apart
    prover._proofs = {f"{number:064}": proof for number in range(MAX_MODELS + 5)}
    await prover._keep()
    prover._proofs = {}
    await prover.load()
    assert len(prover._proofs) == MAX_MODELS and prover._proofs[f"{9:064}"] == proof


async def test_none_is_loud(house: House) -> None:
    await house.register(security="none")
    assert warnings(house).startswith("security=none: its server has no sandbox, and can do whatever you can")
    text = house.path().read_text()
    assert "PrivateUsers" not in text and "NoNewPrivileges=false" in text
