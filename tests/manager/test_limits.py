"""Limits of a model that runs: changed at once, without a restart, and nothing left that would outrank the next change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cortexd import live
from cortexd.errors import SystemdUnavailable, UnitFailed
from cortexd.kinds import GIB
from cortexd.limits import LIMITS, left_by_us, properties
from cortexd.states import State
from cortexd.store import Intent
from cortexd.systemd.protocol import Group, UnitLimits, UnitUsage
from tests.manager.steps import fail
from tests.support.house import ME, House

MEMORY = LIMITS[0]


def control(house: House) -> Path:
    """Where systemd leaves drop-ins."""
    return house.systemd.control / "cortex-a.service.d"


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """One in which drop-ins lie where the manager puts them."""
    house = House(tmp_path)
    monkeypatch.setattr(live, "control_folder", lambda scope: house.systemd.control)
    await house.open()
    yield house
    await house.close()


async def change(house: House, **settings: object) -> tuple[bool, list[str]]:
    needed, warnings = await house.manager.set("a", settings, ME)
    return needed, [w for w in warnings if "this machine has" not in w]


async def test_48g_then_64g_then_a_restart(house: House) -> None:
    unit = await house.running()
    run = house.unit().invocation_id
    for memory in (48, 64):
        assert await change(house, memory=f"{memory}G") == (False, [])
        assert house.systemd.in_force[unit]["MemoryMax"] == memory * GIB
        assert house.systemd.in_force[unit]["MemoryHigh"] == (memory - 6 if memory == 48 else 56) * GIB
        assert f"\nMemoryMax={memory}G\n" in house.path().read_text()
        assert not control(house).exists() and house.unit().drop_in_paths == ()
        assert not house.unit().need_daemon_reload
    assert (house.state(), house.unit().invocation_id) == (State.READY, run)
    await (await house.restart()).wait()
    assert house.unit().drop_in_paths == () and not house.manager.view("a").model.outdated


async def test_the_file_comes_first_and_a_reload_last(house: House) -> None:
    await house.running()
    house.systemd.calls.clear()
    await change(house, TasksMax="600")
    calls = [call[0] for call in house.asked("Reload", "SetUnitProperties")]
    assert calls[-2:] == ["SetUnitProperties", "Reload"]


async def test_a_model_that_rests_gets_its_limits_with_the_next_start(house: House) -> None:
    await house.register()
    assert await change(house, memory="48G") == (False, [])
    assert not house.asked("SetUnitProperties") and "MemoryMax=48G" in house.path().read_text()


async def test_settings_that_are_no_limits_leave_the_unit_alone(house: House) -> None:
    await house.running()
    assert await change(house, **{"health.max_failures": "5"}) == (False, [])
    assert (await change(house, max_model_len="64"))[0]
    assert not house.asked("SetUnitProperties")
    assert (await change(house, memory="1G"))[0], "the other change still waits for a restart"


@pytest.mark.parametrize("where", ["unit_folder", "control"])
async def test_a_drop_in_of_the_users_stays_and_wins(house: House, where: str) -> None:
    unit = await house.running()
    folder = control(house) if where == "control" else house.scope.unit_folder / f"{unit}.d"
    folder.mkdir(parents=True)
    theirs = folder / "50-MemoryMax.conf"
    theirs.write_text(left_by_us(MEMORY, 20 * GIB)[1])
    await house.systemd.reload()
    needed, (warning,) = await change(house, memory="48G")
    assert not needed and warning.startswith(f"memory=48G does not reach it: {theirs} sets MemoryMax=; ")
    assert "MemoryMax" not in house.systemd.in_force[unit] and house.systemd.in_force[unit]["MemoryHigh"] == 42 * GIB
    assert [*folder.iterdir()] == [theirs] and house.unit().drop_in_paths == (str(theirs),)
    house.systemd.held_to[unit] = UnitLimits((Group(unit, frozenset(), {"memory.max": 20 * GIB}),))
    memory, *_ = (await house.manager.limits(["a"]))["a"]
    assert (memory.requested, memory.effective, memory.reason) == ("48G", "20G", f"{theirs} says otherwise")


@pytest.mark.parametrize("error", [UnitFailed("no"), SystemdUnavailable("gone")])
async def test_an_error_of_systemds_leaves_the_model_as_it_was(
    house: House, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    unit = await house.running(memory="32G")
    text = house.path().read_text()
    with monkeypatch.context() as patch:
        patch.setattr(house.systemd, "set_properties", fail(error))
        with pytest.raises(type(error)):
            await change(house, memory="48G")
    assert (house.path().read_text(), house.unit().drop_in_paths) == (text, ())
    assert house.manager.view("a").model.spec.limits.memory == 32 * GIB
    assert (await house.store.models())[0].settings["memory"] == 32 * GIB  # type: ignore[index]
    assert (await house.kinds())[-1] == "set-failed" and not house.manager.view("a").model.outdated
    assert unit not in house.systemd.in_force and not house.unit().need_daemon_reload


async def test_an_error_after_systemd_took_them_takes_them_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = await house.running(memory="32G")
    taken, reload = house.systemd.set_properties, house.systemd.reload

    async def and_reload_fails(*arguments: object) -> None:
        await taken(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(house.systemd, "set_properties", taken)
        monkeypatch.setattr(house.systemd, "reload", once)

    async def once() -> None:
        monkeypatch.setattr(house.systemd, "reload", reload)
        raise UnitFailed("no reload")

    monkeypatch.setattr(house.systemd, "set_properties", and_reload_fails)
    with pytest.raises(UnitFailed, match="no reload"):
        await change(house, memory="48G")
    assert house.systemd.in_force[unit]["MemoryMax"] == 32 * GIB
    assert not control(house).exists() and house.unit().drop_in_paths == ()


async def test_what_a_killed_daemon_left_is_deleted_by_the_next(house: House) -> None:
    unit = await house.running(memory="32G")
    limits = house.manager.view("a").model.spec.limits
    made = {limit.directive: value for limit, value in properties(limits).items()}
    await house.store.begin(Intent(model="a", kind=live.KIND, details={"made": made}))
    await house.close()
    await house.systemd.set_properties(unit, {limit.bus_property: n for limit, n in properties(limits).items()})
    assert len(house.unit().drop_in_paths) == len(LIMITS)
    theirs = control(house) / "50-TasksMax.conf"
    theirs.write_text("[Service]\nTasksMax=77\n")
    await house.open()
    assert house.unit().drop_in_paths == (str(theirs),) and [*control(house).iterdir()] == [theirs]
    assert not house.manager.view("a").model.outdated


@pytest.mark.parametrize("read", [True, False])
async def test_what_the_user_set_to_the_very_same_stays(house: House, read: bool) -> None:
    """As `systemctl set-property` leaves it, byte for byte, whether systemd has read it or not."""
    await house.running(memory="32G")
    control(house).mkdir(parents=True)
    theirs = control(house) / "50-MemoryMax.conf"
    theirs.write_text(left_by_us(MEMORY, 32 * GIB)[1])
    if read:
        await house.systemd.reload()
    await change(house, TasksMax="600")
    await house.close()
    await house.open()
    assert [*control(house).iterdir()] == [theirs] and theirs.read_text() == left_by_us(MEMORY, 32 * GIB)[1]
    assert await house.store.unfinished() == []


async def test_limits_that_a_killed_daemon_had_only_written_are_brought_to_the_unit(house: House) -> None:
    unit = await house.running(memory="48G")
    await house.close()
    held = {"memory.max": 32 * GIB, "memory.high": 42 * GIB}
    house.systemd.held_to[unit] = UnitLimits((Group(unit, frozenset(), held),))
    await house.open()
    assert house.systemd.in_force[unit]["MemoryMax"] == 48 * GIB and house.unit().drop_in_paths == ()


async def test_memory_below_what_it_uses_is_warned_of(house: House) -> None:
    unit = await house.running()
    house.systemd.usages[unit] = UnitUsage(memory=10 * GIB)
    needed, (sized, warning) = await change(house, memory="8G")
    assert not needed and "memory=8G is less than the 10.0G that it uses" in warning
    assert sized == "the limits are in force; what llamacpp sizes by them (its caches) follows at the next start"
    assert await change(house, memory="64G") == (False, [sized])
    assert await change(house, memory="48G") == (False, [])


async def test_what_is_sized_by_limits_is_as_new_after_a_restart(house: House) -> None:
    await house.running(memory="8G")
    await change(house, memory="4G")
    await (await house.restart()).wait()
    assert not house.manager.view("a").model.outdated
    assert "LLAMA_ARG_CACHE_RAM=1024" in house.path().read_text()


async def test_a_drop_in_that_cannot_be_deleted_is_told_of(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.running()

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        _, warnings = await change(house, cpu="2")
    assert len(warnings) == len(LIMITS)
    assert warnings[0].startswith(f"{control(house)}/50-MemoryMax.conf cannot be deleted and outranks later settings: ")


async def test_nothing_is_said_of_a_model_that_rests(house: House) -> None:
    await house.register()
    assert await house.manager.limits(["a"]) == {"a": []}
