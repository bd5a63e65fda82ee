"""A daemon's next start: what was asked for is still so, and files that nobody serves hold nobody up."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cortexd import loading, renewal
from cortexd.definitions import Definer
from cortexd.errors import InvalidConfig
from cortexd.health.policy import Outcome
from cortexd.registered import Definition
from cortexd.store import files
from tests.support.house import ME, House


async def test_no_endpoint_stays_none_at_the_next_start(house: House) -> None:
    await house.register(health__endpoint="none")
    before = house.path().read_text()
    await house.close()
    await house.open()
    assert house.manager.view("a").model.spec.health.endpoint == ""
    assert house.path().read_text() == before


class Mount:
    """A file system that may cease to answer for models of some names."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.back = threading.Event()

    def touch(self, name: str) -> None:
        if name in self.dead:
            self.back.wait()


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    mount, define = Mount(), Definer.define

    def slow(self: Definer, name: str, *args: Any, **options: Any) -> Definition:
        mount.touch(name)
        return define(self, name, *args, **options)

    monkeypatch.setattr(Definer, "define", slow)
    yield mount
    mount.back.set()


async def test_a_dead_mount_does_not_hold_up_the_start(
    house: House, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_STALL_SECONDS", 0.2)
    names = [f"m{number:02}" for number in range(20)]
    for name in names:
        await house.register(name)
    texts = {name: house.path(name).read_text() for name in names}
    await house.close()
    mount.dead = set(names[3:5] + names[6:17])
    began = time.monotonic()
    async with asyncio.timeout(10):
        await house.open()
    # Two stalls short of the bound of eight would be enough to see it: what comes after that many is not looked at.
    assert time.monotonic() - began < 8 * 0.2 * 3
    problems = {name: house.manager.view(name).model.backend_problem for name in names}
    assert {name for name, problem in problems.items() if problem} == set(names[3:5] + names[6:])
    assert set(problems.values()) == {"", renewal.NO_ANSWER}
    assert {name: house.path(name).read_text() for name in names} == texts


async def test_a_dead_mount_does_not_hold_up_a_look_at_a_model(
    house: House, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_STALL_SECONDS", 0.1)
    monkeypatch.setattr(renewal, "_SECONDS", 0.1)
    await house.register()
    await house.close()
    mount.dead = {"a"}
    await house.open()
    async with asyncio.timeout(10):
        await house.manager.refresh(["a"])
    assert house.manager.view("a").model.backend_problem == renewal.NO_ANSWER
    mount.dead.clear()
    await house.manager.refresh(["a"])
    assert house.manager.view("a").model.backend_problem == ""


async def test_a_registration_cancelled_while_it_is_written_leaves_no_model_without_its_key(house: House) -> None:
    loop = asyncio.get_running_loop()

    def cancel(sql: str) -> None:
        if sql == "COMMIT":
            loop.call_soon_threadsafe(task.cancel)

    given = {"backend": "llamacpp", "path": str(house.gguf), "exec": str(house.server), "gpus": "none"}
    await house.store._connection.run(lambda connection: connection.set_trace_callback(cancel))
    task = asyncio.create_task(house.manager.register("a", given, ME, api_key=True))
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await house.close()
    await house.open()
    assert house.manager.catalog.models == {}
    assert house.manager.catalog.secrets.models() == [] and not house.path().exists()


@pytest.mark.parametrize("sub_state", ["auto-restart", "start-pre", "start", "final-sigterm"])
async def test_a_server_that_is_not_there_is_not_asked(house: House, sub_state: str) -> None:
    unit = await house.running(health__enabled="no")
    state = "deactivating" if sub_state == "final-sigterm" else "activating"
    house.systemd._units.change(unit, active_state=state, sub_state=sub_state, main_pid=0, control_group="")
    probe = await house.manager.check_health("a")
    assert probe.outcome is Outcome.NOT_RUNNING and house.prober.asked == []


async def test_a_server_that_loads_is_asked(house: House) -> None:
    unit = await house.running(health__enabled="no")
    house.systemd._units.change(unit, active_state="activating", sub_state="start-post")
    assert (await house.manager.check_health("a")).ok and house.prober.asked


@pytest.mark.parametrize(
    "folder",
    [".config", ".config/systemd/user.control", ".config/environment.d", ".config/cortex/backends", ".cortex", ".config/cortex/",
     ".local/share/cortexd/venv", "../../../../../../../proc/sys", "../../../../../../../sys/fs/cgroup/user.slice"],
)  # fmt: skip
async def test_no_model_may_write_what_units_are_made_of(house: House, folder: str) -> None:
    for settings in (
        {"ReadWritePaths": os.path.normpath(house.scope.home / folder)},
        {"env": f"HF_HOME={os.path.normpath(house.scope.home / folder)}"},
    ):
        with pytest.raises(
            InvalidConfig, match=r"would open .*, (which no model may see|by which a model gets out of)"
        ):
            await house.register(**settings)


def test_a_damaged_database_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, it is still found damaged, and its side files belong to nothing else."""
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"db{suffix}").touch()
    renamed: list[str] = []
    replace = Path.replace

    def recorded(self: Path, target: Any) -> Path:
        renamed.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    files.set_aside(tmp_path / "db", 0)
    assert renamed[-1] == "db" and sorted(renamed) == ["db", "db-shm", "db-wal"]
