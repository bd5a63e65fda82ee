"""doctor's rules about bus, manager, linger and daemon, over evidence; and the look at lingering."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cortexctl.doctor import look_session, rules_session
from cortexctl.doctor.evidence import Daemon, Manager, Model, Session, Unseen
from cortexctl.doctor.line import Cure, Level, Line
from cortexd.limits import DELEGATE
from cortexd.version import VERSION
from tests.cli.service import Asked, Service

ALL = frozenset({"cpu", "io", "memory", "pids"})
MANAGER = Manager(version="257.13-1~deb13u1", state="running", controllers=ALL, everywhere=ALL)
UNIT: dict[str, str | int] = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}
DAEMON = Daemon(running=True, activatable=True, unit=UNIT, version=VERSION, models=(), backends=())
SESSION = Session(address="unix:path=/run/user/1/bus", manager=MANAGER, daemon=DAEMON)


def found(rule: Any, **changes: Any) -> list[tuple[Level, str]]:
    """What a rule says of a session that is well but for `changes`."""
    return [(line.level, line.text) for line in rule(replace(SESSION, **changes))]


def of_daemon(**changes: Any) -> list[Line]:
    return list(rules_session.daemon(replace(SESSION, daemon=replace(DAEMON, **changes))))


def of_manager(**changes: Any) -> list[Line]:
    return list(rules_session.manager(replace(SESSION, manager=replace(MANAGER, **changes)), "ann", 1))


def test_all_is_well() -> None:
    lines = [
        *rules_session.bus(SESSION),
        *rules_session.manager(SESSION, "ann", 1),
        *rules_session.delegation(SESSION),
        *rules_session.linger(True, "ann"),
        *rules_session.daemon(SESSION),
    ]
    assert {line.level for line in lines} == {Level.OK}
    assert [line.check for line in lines] == ["bus", "systemd", "controllers", "linger", "daemon"]


def test_a_bus_that_cannot_be_reached_is_the_only_error() -> None:
    broken = replace(SESSION, problem="cannot reach it; log in", manager=Unseen("was not asked"), daemon=None)
    (line,) = rules_session.bus(broken)
    assert (line.level, line.text, line.remedy) == (Level.ERROR, "cannot reach it", "log in")
    for rule in (rules_session.delegation, rules_session.daemon):
        assert list(rule(broken)) == []
    assert list(rules_session.manager(broken, "ann", 1)) == []
    (line,) = rules_session.bus(replace(broken, other_bus="/run/user/1/bus"))
    assert "unset DBUS_SESSION_BUS_ADDRESS" in line.remedy and "/run/user/1/bus" in line.remedy


def test_a_bus_of_its_own_is_named() -> None:
    there = {"address": "unix:path=/tmp/x", "other_bus": "/run/user/1/bus", "manager": Unseen("is not on this bus")}
    assert found(rules_session.bus, **there) == [
        (Level.ERROR, "unix:path=/tmp/x is not the bus of your systemd manager")
    ]
    assert found(rules_session.bus, address="unix:path=/tmp/x", other_bus="/run/user/1/bus")[0][0] is Level.OK


def test_no_manager() -> None:
    (line,) = rules_session.manager(replace(SESSION, manager=Unseen("does not answer within 1.5 s")), "ann", 17)
    assert line.level is Level.ERROR and "user@17.service" in line.remedy and "enable-linger ann" in line.remedy


@pytest.mark.parametrize(("version", "level"), [("251.4", Level.ERROR), ("252", Level.OK), ("v258~rc1", Level.OK)])
def test_systemds_version(version: str, level: Level) -> None:
    assert of_manager(version=version)[0].level is level


def test_a_manager_that_ends() -> None:
    assert of_manager(state="stopping")[0].level is Level.ERROR
    assert of_manager(state="degraded")[0].level is Level.OK


def test_failed_units_of_ours_and_of_others() -> None:
    _, ours, other, theirs = of_manager(failed=("cortex-a.service", "cortexd.service"), failed_others=2)
    assert (ours.level, ours.remedy) == (Level.WARNING, "'cortexctl why a' says why")
    assert other.remedy == "see 'systemctl --user status cortexd.service'"
    assert theirs.level is Level.NOTE and theirs.text.startswith("2 units ")
    many = of_manager(failed=tuple(f"cortex-{n}.service" for n in range(9)))
    assert len(many) == 7 and (many[-1].level, many[-1].text) == (Level.WARNING, "4 more have failed")
    assert len(of_manager(failed=tuple(f"cortex-{n}.service" for n in range(5)))) == 6, "none is left to be counted"


def test_controllers() -> None:
    def of(controllers: frozenset[str] | None, *models: Model) -> list[Line]:
        manager, daemon = replace(MANAGER, controllers=controllers), replace(DAEMON, models=models)
        return list(rules_session.delegation(replace(SESSION, manager=manager, daemon=daemon)))

    stock = ALL - {"io"}
    assert [line.text for line in of(ALL)] == ["limits are enforced for cpu, memory, pids, io"]
    assert of(stock)[0].text == "limits are enforced for cpu, memory, pids"
    assert [line.level for line in of(stock)] == [Level.OK, Level.NOTE]
    (_, note) = of(stock, Model(name="a", host="", port=1, io_weight=100))
    assert note.level is Level.NOTE and "Delegate=cpu cpuset io memory pids" in note.remedy
    (_, weighted) = of(stock, Model(name="a", host="", port=1, io_weight=500))
    assert weighted.level is Level.WARNING and "IOWeight of a has no effect" in weighted.text
    (missing,) = of(frozenset({"memory"}))
    assert missing.level is Level.WARNING and missing.text.startswith("limits of cpu, pids are not enforced")
    assert of(None)[0].level is Level.NOTE


def test_what_the_machine_itself_lacks_is_not_to_be_delegated() -> None:
    """The same remedies as `status` has (tests/test_limits.py)."""
    bare = replace(MANAGER, controllers=frozenset({"memory"}), everywhere=frozenset({"memory", "pids"}))
    cpu, pids = rules_session.delegation(replace(SESSION, manager=bare))
    assert "limits of cpu are" in cpu.text and cpu.remedy.startswith("boot with systemd.unified_cgroup_hierarchy=1")
    assert "limits of pids are" in pids.text and pids.remedy == DELEGATE
    no_io = replace(MANAGER, controllers=ALL - {"io"}, everywhere=ALL - {"io"})
    _, note = rules_session.delegation(replace(SESSION, manager=no_io))
    assert note.remedy == cpu.remedy and "cgroup v2 has no io controller here" in note.text


def test_linger() -> None:
    (off,) = rules_session.linger(False, "ann")
    assert (off.level, off.remedy) == (Level.WARNING, "loginctl enable-linger ann")
    assert off.fix is not None and off.fix.cure is Cure.LINGER
    (unknown,) = rules_session.linger(Unseen("there is no system bus"), "ann")
    assert unknown.level is Level.NOTE and unknown.fix is None


def test_another_version_and_a_silent_daemon_can_be_restarted() -> None:
    for line in (of_daemon(version="9.9")[0], of_daemon(version=None, models=None)[0]):
        assert line.wrong and line.fix is not None and line.fix.cure is Cure.RESTART
    assert "9.9" in of_daemon(version="9.9")[0].text
    assert of_daemon(version=None, models=None)[0].level is Level.ERROR


def test_a_running_daemon_that_is_half_installed() -> None:
    assert "activation file" in of_daemon(activatable=False)[1].text
    assert "by hand" in of_daemon(unit={"LoadState": "not-found"})[1].text
    assert len(of_daemon(unit={"LoadState": "not-found"}, activatable=False)) == 2, "one sentence, one remedy"
    assert "unmask" in of_daemon(unit={"LoadState": "masked"})[1].remedy
    disabled = of_daemon(unit={**UNIT, "UnitFileState": "disabled"})[1]
    assert disabled.level is Level.NOTE and disabled.remedy == "systemctl --user enable cortexd.service"


def test_warnings_of_the_daemon_are_shown() -> None:
    lines = of_daemon(
        warnings=("row 7 cannot be read; delete it", *"abcde"),
        models=(Model(name="m", host="", port=1, warned=True), Model(name="n", host="", port=2)),
    )
    assert (lines[1].level, lines[1].text, lines[1].remedy) == (Level.WARNING, "row 7 cannot be read", "delete it")
    assert lines[-2].text == "1 more warnings of cortexd's"
    assert lines[-1].level is Level.NOTE and lines[-1].text == "there are warnings about m: 'cortexctl status NAME'"


@pytest.mark.parametrize(
    ("unit", "level", "words", "fix"),
    [
        ({"LoadState": "not-found"}, Level.ERROR, "is not installed", None),
        ({"LoadState": "masked"}, Level.ERROR, "is masked", None),
        ({"ActiveState": "inactive"}, Level.NOTE, "the next command", None),
        ({"ActiveState": "activating", "SubState": "start"}, Level.NOTE, "is activating", None),
        ({"ActiveState": "failed", "Result": "watchdog"}, Level.ERROR, "failed (watchdog)", Cure.START),
        (
            {"ActiveState": "failed", "ExecMainStatus": 78, "StatusText": "models.db is broken"},
            Level.ERROR,
            "cortexd does not start: models.db is broken",
            None,
        ),
    ],
)
def test_a_daemon_that_is_not_there(unit: dict[str, Any], level: Level, words: str, fix: Cure | None) -> None:
    (line,) = of_daemon(running=False, version=None, unit={**UNIT, **unit})
    assert line.level is level and words in line.text
    assert (line.fix.cure if line.fix else None) == fix


def test_a_daemon_that_nothing_starts() -> None:
    (line,) = of_daemon(running=False, activatable=False, unit={**UNIT, "ActiveState": "inactive"})
    assert line.level is Level.ERROR and line.fix is not None and "make install" in line.remedy
    (line,) = of_daemon(running=False, activatable=False, unit=None)
    assert (line.level, line.remedy) == (Level.ERROR, "'make install' installs it")


class FakeLogind(Service):
    """The calls that are made of logind (org.freedesktop.login1(5))."""

    name = "org.freedesktop.login1"

    def __init__(self, address: str, lingers: bool | None) -> None:
        super().__init__(address)
        self.lingers = lingers
        """None: the user is not known to it."""

    def reply(self, asked: Asked, interface: str, signature: str) -> tuple[str, tuple[Any, ...]]:
        uid = os.getuid()
        if asked.member == "ListUsers":
            known = [(uid, "me", f"/org/freedesktop/login1/user/_{uid}")] if self.lingers is not None else []
            return "a(uso)", ([(uid + 1, "other", "/org/freedesktop/login1/user/_1"), *known],)
        if asked.member == "SetUserLinger":
            self.lingers = asked.body[1]
            return "", ()
        assert asked.body == ("org.freedesktop.login1.User", "Linger") and asked.path.endswith(f"_{uid}")
        return "v", (("b", self.lingers),)


@pytest.mark.parametrize("answer", [True, False, None])
def test_logind_is_asked(private_bus: str, monkeypatch: pytest.MonkeyPatch, answer: bool | None) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private_bus)
    with FakeLogind(private_bus, answer):
        assert look_session.lingers("me") is bool(answer)


def test_without_logind_its_mark_tells(private_bus: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "me").touch()
    for where in (private_bus, "unix:path=/nonexistent"):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", where)
        assert look_session.lingers("me", tmp_path) is True
        assert look_session.lingers("you", tmp_path) is False
        assert isinstance(look_session.lingers("me", tmp_path / "none"), Unseen)
