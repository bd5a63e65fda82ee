"""What somebody did to our files meanwhile is seen by whoever looks at all models, or starts one; what is mended is told no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cortexd.units import files
from cortexd.units.files import FileState
from tests.manager.steps import again
from tests.support.house import ME, House

DRIFTED = "is not what cortexd wrote and is kept; settings do not reach it: 'cortexctl repair a' shows the difference"


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("[Service]", "[Service]\nNice=5"))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.write_text("")


def warnings(house: House) -> tuple[str, ...]:
    return house.manager.view("a").model.warnings


@pytest.mark.parametrize("harm", [edit, make_folder, make_link, make_fifo, empty])
async def test_a_look_at_all_models_sees_what_became_of_a_unit_file(house: House, harm: Callable[[Path], None]) -> None:
    await house.running()
    await house.running("b")
    told: list[str] = []
    house.manager.on_change = told.append
    await house.manager.catalog.look_at_units()
    assert warnings(house) == () and told == []
    harm(house.path())
    await house.manager.catalog.look_at_units()
    (warning,) = warnings(house)
    assert warning.startswith(f"{house.path()} {DRIFTED}") and told == ["a"], "and its clients learn of it"
    await house.manager.repair("a", ME)
    await house.manager.catalog.look_at_units()
    assert warnings(house) == () and house.manager.view("a").model.file_state is FileState.CURRENT
    house.path().unlink()
    await house.manager.catalog.look_at_units()
    (warning,) = warnings(house)
    assert warning.startswith(f"{house.path()} is missing; the next start writes it again")


async def test_files_that_nobody_changed_are_not_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        await house.register(name)
    await again(house)
    await house.register("c")
    read: list[Path] = []
    inspect = files.inspect

    def counting(path: Path, wanted: str | None = None) -> FileState:
        read.append(path)
        return inspect(path, wanted)

    monkeypatch.setattr(files, "inspect", counting)
    await house.manager.catalog.look_at_units()
    assert not any("cortex-" in path.name and path.name[-9:] == ".service" and "@" not in path.name for path in read)
    edit(house.path("b"))
    await house.manager.catalog.look_at_units()
    assert house.path("b") in read and house.path("a") not in read


async def test_a_start_and_a_restart_say_that_another_text_is_run(house: House) -> None:
    await house.register()
    edit(house.path())
    job = await house.start()
    (warning,) = await job.wait()
    assert warning.startswith(f"{house.path()} {DRIFTED}")
    (warning,) = await (await house.restart()).wait()
    assert warning.startswith(f"{house.path()} {DRIFTED}")
    await house.manager.repair("a", ME)
    assert await (await house.restart()).wait() == []


async def test_what_lies_around_is_told_of_until_it_is_away_or_has_its_model(house: House) -> None:
    await house.register("ghost")
    text = house.path("ghost").read_text()
    await (await house.unregister("ghost")).wait()
    changed: list[list[str]] = []
    house.manager.catalog.on_warnings = lambda: changed.append(house.manager.catalog.warnings)
    for name in ("b", "ghost"):
        house.path(name).write_text(text)
    house.manager.catalog.secrets.set("b", "HF_TOKEN", b"canary")
    await house.manager.catalog.look_around()
    secrets, b, ghost = house.manager.catalog.warnings
    assert "secrets/b/environment has secrets, but no model 'b' is registered" in secrets
    assert "no model 'b' is registered; register it again, or delete the file" in b and "'ghost'" in ghost
    await house.manager.catalog.look_around()
    assert changed == [[secrets, b, ghost]], "what is as it was is no change"
    await house.register("b")
    assert house.manager.catalog.warnings == [ghost]
    house.path("ghost").unlink()
    await house.manager.catalog.look_around()
    assert house.manager.catalog.warnings == [] == changed[-1]


async def test_a_file_that_is_kept_when_its_model_goes_is_told_of(house: House) -> None:
    await house.register()
    edit(house.path())
    await (await house.unregister()).wait()
    await house.manager.catalog.look_around()
    (warning,) = house.manager.catalog.warnings
    assert "but no model 'a' is registered, and it was edited by hand" in warning
