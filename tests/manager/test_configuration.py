"""Registering and changing models: all of it or nothing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat

import pytest

from cortexd.errors import (
    CortexError,
    InvalidConfig,
    InvalidName,
    ModelExists,
    StoreFailed,
    SystemdUnavailable,
    UnitConflict,
)
from cortexd.names import FOLDER_TEMPLATE
from cortexd.states import State
from tests.manager.steps import (
    everything,
    fail,
    like,
)
from tests.support.house import ME, House


async def test_registered(house: House) -> None:
    added: list[str] = []
    house.manager.on_add = added.append
    unit = await house.register("a", memory="2G", health__interval_seconds=70)
    assert added == ["a"]
    text = house.path().read_text()
    assert "MemoryMax=2147483648" in text or "MemoryMax=2G" in text
    assert house.unit().load_state == "loaded" and ("Reload",) in house.systemd.calls
    assert stat.S_IMODE(house.path().stat().st_mode) & 0o022 == 0
    view = house.manager.view("a")
    assert (view.model.spec.health.interval, view.judgement.state, unit) == (70.0, State.STOPPED, "cortex-a.service")
    (event,) = await house.events()
    assert (event.kind, event.actor, event.message) == ("registered", "me[1]", "registered with llamacpp")
    assert event.details["memory"] == "2G"
    # Only what was asked for is stored: defaults may change with a release.
    (row,) = await house.store.models()
    assert row.settings is not None
    assert set(row.settings) == {"backend", "path", "exec", "port", "gpus", "memory", "health.interval_seconds"}


@pytest.mark.parametrize(
    ("name", "given", "error", "says"),
    [
        ("-a", {}, InvalidName, "name '-a'"),
        ("a.service", {}, InvalidName, "unit"),
        ("a" * 65, {}, InvalidName, "65 characters"),
        ("a", {"prot": "1"}, InvalidConfig, "unknown setting 'prot'; did you mean port?"),
        ("a", {"port": "70000"}, InvalidConfig, "port='70000'"),
        ("a", {"path": ""}, InvalidConfig, "path: is missing"),
        ("a", {"path": "/nowhere.gguf"}, InvalidConfig, "does not exist"),
        ("a", {"exec": "/nowhere/llama-server"}, InvalidConfig, "is no executable file"),
        ("a", {"exec": ""}, InvalidConfig, "no llama-server on your PATH"),
        ("a", {"backend": "none"}, InvalidConfig, "backend='none'"),
        ("a", {"memory": "2G", "MemoryHigh": "3G"}, InvalidConfig, "MemoryHigh=3G"),
        ("a", {"health.timeout_seconds": "40"}, InvalidConfig, "health.timeout_seconds=40"),
        ("a", {"host": "example.org", "port": "auto"}, InvalidConfig, "host='example.org'"),
        ("a", {"extra_args": "'"}, InvalidConfig, "extra_args"),
    ],
)
async def test_bad_input_changes_nothing(
    house: House, name: str, given: dict[str, object], error: type[CortexError], says: str
) -> None:
    before = everything(house)
    with pytest.raises(error) as caught:
        await house.register(name, **given)
    assert says in str(caught.value)
    assert everything(house) == before == {"files": {}, "rows": [], "specs": {}}
    assert await house.events(name) == [] and house.asked("Reload") == []


@pytest.mark.parametrize("where", ["store", "write", "reload", "cancelled", "last"])
async def test_a_registration_that_fails_is_undone(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before = everything(house)
    with monkeypatch.context() as patch:
        if where == "store":
            patch.setattr(house.store._writer, "write", fail(sqlite3.OperationalError("disk full")))
        elif where == "write":
            house.scope.unit_folder.chmod(0o500)
        elif where == "reload":
            patch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
        elif where == "last":
            patch.setattr(house.store, "save_models", fail(StoreFailed("locked")))
        else:
            patch.setattr(house.systemd, "reload", fail(asyncio.CancelledError()))  # type: ignore[arg-type]
        with pytest.raises((StoreFailed, UnitConflict, SystemdUnavailable, asyncio.CancelledError)):
            await house.register()
        house.scope.unit_folder.chmod(0o700)
    assert everything(house) == before
    assert await house.kinds() == ([] if where == "store" else ["register-failed"])
    assert house.unit().load_state == "not-found"
    await house.running()  # and it can be done again


async def test_two_at_once_share_no_port_and_no_name(house: House) -> None:
    await asyncio.gather(*(house.register(f"m{number}") for number in range(8)))
    ports = [house.manager.view(f"m{number}").model.spec.port for number in range(8)]
    assert len(set(ports)) == 8
    results = await asyncio.gather(*(house.register("twin") for _ in range(5)), return_exceptions=True)
    assert results.count("cortex-twin.service") == 1
    assert sum(isinstance(r, ModelExists) for r in results) == 4
    assert "cortexctl set twin KEY=VALUE" in str(next(r for r in results if isinstance(r, ModelExists)))
    assert await house.kinds("twin") == ["registered"]


async def test_a_common_port_is_a_warning(house: House) -> None:
    await house.register("a", port=18001)
    assert list(await house.manager.register("b", like("a", house, port="18001"), ME)) == [
        "port=18001: model a has it, too; only one of them can run at a time"
    ]
    assert house.manager.view("a").model.warnings  # the other one's, too
    await (await house.unregister("b")).wait()
    assert house.manager.view("a").model.warnings == ()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
async def test_a_unit_file_of_somebody_elses_is_kept(house: House, kind: str) -> None:
    path = house.path()
    if kind == "file":
        path.write_text("[Service]\nExecStart=/bin/true\n")
    elif kind == "link":
        path.symlink_to("/dev/null")  # masked
    else:
        path.mkdir()
    with pytest.raises(UnitConflict, match="move it away, or choose another name"):
        await house.register()
    assert path.is_symlink() == (kind == "link") and path.is_dir() == (kind == "folder")
    if kind == "file":
        assert path.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert house.manager.catalog.models == {} and await house.events() == []


async def test_a_unit_that_lies_elsewhere_is_not_covered(house: House) -> None:
    house.systemd.change(
        "cortex-a.service", load_state="loaded", fragment_path="/usr/lib/systemd/user/cortex-a.service"
    )
    house.systemd._units.unit("cortex-a.service").text = "[Service]"
    with pytest.raises(UnitConflict, match=r"/usr/lib/systemd/user/cortex-a\.service\); choose another name"):
        await house.register()
    assert not house.path().exists()


async def test_change(house: House) -> None:
    await house.running()
    run, text = house.unit().invocation_id, house.path().read_text()
    changed: list[str] = []
    house.manager.on_change = changed.append
    os.utime(house.path(), (0, 0))
    needed, warnings = await house.manager.set("a", {"health.interval_seconds": "50"}, ME)
    told = [line for line in house.path().read_text().splitlines() if not line.startswith("#")]
    assert (needed, list(warnings), told) == (False, [], [x for x in text.splitlines() if not x.startswith("#")])
    # The fake's clock begins at 1970: any file is younger than its runs.
    needed, _ = await house.manager.set("a", {"max_model_len": 77}, ME)
    assert needed and '"77"' in house.path().read_text() and house.unit().invocation_id == run
    assert set(changed) == {"a"}
    events = await house.events()
    assert [(e.kind, e.message) for e in events[-2:]] == [
        ("set", "changed health.interval_seconds=50"),
        ("set", "changed max_model_len=77"),
    ]
    assert events[-1].actor == "me[1]" and events[-1].details == {"max_model_len": "77"}
    await house.manager.set("a", {"max_model_len": ""}, ME)
    assert house.manager.view("a").model.spec.max_model_len == 4096
    (row,) = await house.store.models()
    assert row.settings is not None and "max_model_len" not in row.settings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "no setting was given"),
        ({"max_model_len": "77", "port": "x"}, "port='x'"),
        ({"max_model_len": "77", "unknown": "1"}, "unknown setting"),
        ({"MemoryHigh": "33G"}, "MemoryHigh=33G"),
    ],
)
async def test_a_change_is_all_or_nothing(house: House, given: dict[str, object], says: str) -> None:
    await house.register()
    before = everything(house)
    with pytest.raises(InvalidConfig, match=says):
        await house.manager.set("a", given, ME)
    assert everything(house) == before and await house.kinds() == ["registered"]


@pytest.mark.parametrize("where", ["store", "write", "reload", "cancelled", "last"])
async def test_a_change_that_fails_is_undone(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    await house.running()
    await house.events()
    before = everything(house)
    with monkeypatch.context() as patch:
        if where == "store":
            patch.setattr(house.store._writer, "write", fail(sqlite3.OperationalError("disk full")))
        elif where == "write":
            house.scope.unit_folder.chmod(0o500)
        elif where == "reload":
            patch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
        elif where == "last":
            patch.setattr(house.store, "save_models", fail(StoreFailed("locked")))
        else:
            patch.setattr(house.systemd, "reload", fail(asyncio.CancelledError()))  # type: ignore[arg-type]
        with pytest.raises((StoreFailed, UnitConflict, SystemdUnavailable, asyncio.CancelledError)):
            await house.manager.set("a", {"max_model_len": "77"}, ME)
        house.scope.unit_folder.chmod(0o700)
    assert everything(house) == before
    assert (await house.kinds())[-2:] == (["run", "ready"] if where == "store" else ["ready", "set-failed"])
    if where == "last":
        assert house.systemd._units.unit("cortex-a.service").text == house.path().read_text(), "systemd knows it, too"
    assert await house.manager.set("a", {"max_model_len": "78"}, ME)
    assert '"78"' in house.path().read_text()


async def test_changes_at_once_lose_nothing(house: House) -> None:
    await house.register()
    await asyncio.gather(
        *(house.manager.set("a", {name: value}, ME) for name, value in
          [("max_model_len", "77"), ("RestartSec", "3"), ("CPUWeight", "50"), ("port", "18002")])
    )  # fmt: skip
    spec = house.manager.view("a").model.spec
    assert (spec.max_model_len, spec.restart.restart_seconds, spec.limits.cpu_weight, spec.port) == (77, 3.0, 50, 18002)
    await house.close()
    await house.open()
    assert house.manager.view("a").model.spec == spec


async def test_an_edited_unit_is_kept_and_reported(house: House) -> None:
    await house.register()
    edited = house.path().read_text().replace("[Service]", "[Service]\nNice=5")
    house.path().write_text(edited)
    with pytest.raises(UnitConflict, match="was edited by hand and is kept; move the change to a drop-in"):
        await house.manager.set("a", {"max_model_len": "77"}, ME)
    await (await house.start()).wait()
    assert house.path().read_text() == edited
    assert any("is not what cortexd wrote and is kept" in w for w in house.manager.view("a").model.warnings)
    await (await house.stop()).wait()
    await (await house.unregister()).wait()
    assert house.path().read_text() == edited
    assert "was not as cortexd wrote it and is kept" in (await house.events())[-1].message


async def test_drop_ins_survive(house: House) -> None:
    await house.register()
    drop_in = house.scope.unit_folder / "cortex-a.service.d" / "mine.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nNice=5\n")
    await house.manager.set("a", {"max_model_len": "77"}, ME)
    assert house.unit().drop_in_paths == (str(drop_in),)
    await (await house.start()).wait()
    await (await house.unregister(force=True)).wait()
    assert drop_in.read_text() == "[Service]\nNice=5\n"


async def test_a_unit_file_that_is_gone_is_written_again_at_the_start(house: House) -> None:
    await house.register()
    text = house.path().read_text()
    house.path().unlink()
    await house.systemd.reload()
    await (await house.start()).wait()
    assert house.path().read_text() == text and house.state() is State.READY


async def test_folders_that_a_backend_writes_have_a_unit_that_makes_them(house: House) -> None:
    await house.register(path="org/name:Q4")
    assert (house.scope.unit_folder / FOLDER_TEMPLATE).exists()
    assert FOLDER_TEMPLATE.split("@")[0] in house.path().read_text()
