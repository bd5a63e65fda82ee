"""Unit files that somebody edited, deleted or replaced: kept, named, and written again when that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.errors import CortexError, SystemdUnavailable, UnitConflict
from cortexd.store import Intent
from cortexd.units.files import FileState
from tests.manager.steps import fail
from tests.support.house import ME, House


def edit(house: House) -> str:
    """By hand; returns what it says then."""
    text = house.path().read_text().replace("[Service]", "[Service]\nNice=5")
    house.path().write_text(text)
    return text


def kept(house: House) -> list[Path]:
    return sorted(house.scope.unit_folder.glob("*.kept-*"))


async def test_an_edited_file_is_written_again_and_kept(house: House) -> None:
    await house.running()
    wanted, run, edited = house.path().read_text(), house.unit().invocation_id, edit(house)
    await house.manager.refresh(["a"])
    (warning,) = house.manager.view("a").model.warnings
    assert warning.endswith("settings do not reach it: 'cortexctl repair a' shows the difference, and writes it now")
    look = await house.manager.repair("a", ME, dry_run=True)
    assert (look.drift.state, look.drift.found, look.drift.wanted, look.kept) == (
        FileState.EDITED, edited, wanted, None,
    )  # fmt: skip
    assert house.path().read_text() == edited and kept(house) == []
    done = await house.manager.repair("a", ME)
    assert done.kept is not None and kept(house) == [done.kept] and done.kept.read_text() == edited
    assert house.path().read_text() == wanted
    assert house.manager.view("a").model.warnings == () and house.unit().invocation_id == run
    event = (await house.events())[-1]
    assert (event.kind, event.actor) == ("repair", "me[1]")
    assert event.message == f"unit file written again, which was edited; what was there is kept as {done.kept}"
    assert await house.manager.set("a", {"max_model_len": "77"}, ME), "settings reach it again"


async def test_what_is_there_may_be_anything(house: House) -> None:
    await house.register()
    wanted = house.path().read_text()

    def link() -> None:
        house.path().symlink_to("/dev/null")

    def folder() -> None:
        house.path().mkdir()

    def foreign() -> None:
        house.path().write_bytes(b"\xff\0 not ours")

    for make, state, says in (
        (link, FileState.FOREIGN, "# a link to /dev/null\n"),
        (folder, FileState.FOREIGN, "# no text file (drwx"),
        (foreign, FileState.FOREIGN, "\ufffd\0 not ours"),
        (lambda: None, FileState.MISSING, ""),
    ):
        house.path().unlink()
        make()
        number = len(kept(house))
        done = await house.manager.repair("a", ME)
        assert (done.drift.state, done.drift.found[: len(says)]) == (state, says)
        assert house.path().read_text() == wanted and not house.path().is_symlink()
        assert len(kept(house)) == number + (state is not FileState.MISSING)
    events = len(await house.events())
    assert (await house.manager.repair("a", ME)).drift.state is FileState.CURRENT
    assert len(await house.events()) == events, "nothing to do is nothing to tell"


@pytest.mark.parametrize("where", ["write", "reload", "store"])
async def test_a_failure_leaves_it_as_it_was(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    await house.register()
    edited = edit(house)
    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr("cortexd.units.files.write", _no_room)
        elif where == "reload":
            patch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
        else:
            patch.setattr(house.store, "begin", fail(CortexError("disk full")))
        with pytest.raises((UnitConflict, SystemdUnavailable, CortexError)):
            await house.manager.repair("a", ME)
    assert house.path().read_text() == edited and kept(house) == []
    assert await house.store.unfinished() == []
    await house.manager.repair("a", ME)
    assert house.path().read_text() != edited


def _no_room(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


async def test_what_a_killed_daemon_had_begun_the_next_one_finishes(house: House) -> None:
    await house.register()
    edited = edit(house)
    await house.store.begin(Intent(model="a", kind="repair", actor="me[1]"))
    await house.close()
    await house.open()
    assert house.path().read_text() == edited
    await house.manager.recovery.run()
    assert house.path().read_text() != edited and [path.read_text() for path in kept(house)] == [edited]
    assert await house.store.unfinished() == []


async def test_a_run_of_a_file_with_a_comment_more_is_what_was_asked_for(house: House) -> None:
    await house.running()
    await house.manager.set("a", {"max_model_len": "300"}, ME)
    assert house.manager.view("a").model.outdated
    house.path().write_text(house.path().read_text() + "# hi\n")
    await (await house.restart()).wait()
    await house.manager.repair("a", ME)
    assert not house.manager.view("a").model.outdated


async def test_a_run_of_an_edited_file_needs_a_restart_once_it_is_repaired(house: House) -> None:
    await house.running()
    edit(house)
    await house.manager.repair("a", ME)
    assert not house.manager.view("a").model.outdated, "it was started before the edit"
    edit(house)
    await (await house.restart()).wait()
    assert not house.manager.view("a").model.outdated, "a restart brings nothing while the file is somebody else's"
    await house.manager.repair("a", ME)
    assert house.manager.view("a").model.outdated
    await house.close()
    await house.open()
    assert house.manager.view("a").model.outdated, "the next daemon knows"
