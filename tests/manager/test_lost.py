"""A lost database: what unit files carry of it comes back, and it is said, whatever comes back."""

from __future__ import annotations

import pytest

from cortexd.errors import StoreFailed
from cortexd.events import Priority
from cortexd.rebuild import losses
from cortexd.store import EventQuery, Store
from cortexd.store import files as store_files
from cortexd.units import files
from tests.manager.steps import again, fail
from tests.support.house import ME, House


def lose(house: House) -> None:
    for path in house.scope.data.glob("models.db*"):
        path.unlink()


async def test_it_is_made_again_also_when_the_first_try_was_killed(house: House) -> None:
    await house.register("a", max_model_len=77)
    await house.close()
    lose(house)
    await (await Store.open(house.scope.database)).close()  # killed before it had looked at the units
    await house.open()
    assert list(house.manager.catalog.models) == ["a"]
    assert house.manager.view("a").model.spec.max_model_len == 77
    lost = (
        "the database was lost; registered again from their unit files: a; "
        "'cortexctl unregister' removes what should not be there"
    )
    assert house.manager.catalog.warnings == [lost]
    (event,) = await house.events()
    assert (event.kind, event.priority) == ("registered", Priority.WARNING)
    await again(house)
    assert list(house.manager.catalog.models) == ["a"] and await house.store.unfinished() == []
    assert house.manager.catalog.warnings == [lost], "whoever missed it, or was killed, tells it again"
    (event,) = await house.store.events(EventQuery(models=[""]))
    assert (event.kind, event.message, event.priority) == ("database-lost", lost, Priority.WARNING)
    week = 7 * 24 * 3600
    assert await losses(house.store, event.time / 1e6 + week) == [lost]
    assert await losses(house.store, event.time / 1e6 + week + 1) == []


async def test_a_unit_that_was_edited_by_hand_comes_back_as_that(house: House) -> None:
    await house.running(max_model_len=77)
    run = house.unit().invocation_id
    edited = house.path().read_text().replace("[Service]", "[Service]\nNice=5")
    house.path().write_text(edited)
    await again(house, before=lambda: lose(house))
    (told,) = house.manager.catalog.warnings
    assert told.startswith("the database was lost; registered again from their unit files: a;")
    view = house.manager.view("a")
    assert view.model.spec.max_model_len == 77 and view.unit.invocation_id == run
    assert view.model.drifted and house.path().read_text() == edited
    assert any("is not what cortexd wrote and is kept" in warning for warning in view.model.warnings)
    await house.manager.repair("a", ME)
    assert not house.manager.view("a").model.drifted and "Nice=5" not in house.path().read_text()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "it does not say with which settings"),
        ('# Settings: {"port": "x"}', "port='x'"),
        ('# Settings: {"prot": 1}', "unknown setting 'prot'"),
        ("# Settings: []", "it does not say with which settings"),
    ],
)
@pytest.mark.parametrize("edited", [False, True])
async def test_that_no_unit_says_enough_is_said_with_what_to_do(
    house: House, line: str, says: str, edited: bool
) -> None:
    await house.running()
    text = house.path().read_text()
    (settings,) = [each for each in text.splitlines() if each.startswith("# Settings: ")]
    written = text.replace(settings, line)
    if not edited:
        written = files.with_marker(written.split("\n\n", 1)[1])
    house.path().write_text(written)
    await again(house, before=lambda: lose(house))
    lost, why, orphan = house.manager.catalog.warnings
    assert lost == "the database was lost, and no model can be registered again from a unit file"
    assert why.startswith(f"{house.path()} cannot be registered again: ") and says in why
    assert f"{house.path()} was written by cortexd, but no model 'a' is registered" in orphan
    # And what it says to do helps.
    if edited:
        assert orphan.endswith("it was edited by hand; move it away, then register the model again")
        house.path().unlink()
    else:
        assert orphan.endswith("register it again, or delete the file")
    await house.register()
    assert not house.manager.view("a").model.drifted


async def test_where_there_was_nothing_nothing_is_said(house: House) -> None:
    (house.scope.unit_folder / "cortex-stranger.service").write_text("[Service]\nExecStart=/bin/true\n")
    await again(house, before=lambda: lose(house))
    assert house.manager.catalog.warnings == []


async def test_where_a_damaged_one_is_kept_is_told_by_whichever_daemon_comes_to_it(house: House) -> None:
    await house.register()
    await house.close()
    kept = store_files.set_aside(house.scope.database, 1_800_000_000)  # and then it was killed
    await house.open()
    kept_told, lost = house.manager.catalog.warnings
    assert kept_told == f"the database that was damaged is kept as {kept}: past events are in it alone"
    assert lost.startswith("the database was lost; registered again from their unit files: a;")
    await again(house)
    assert house.manager.catalog.warnings == [kept_told, lost]


async def test_of_very_many_models_the_first_are_named(house: House) -> None:
    for number in range(22):
        await house.register(f"m{number:02}")
    await again(house, before=lambda: lose(house))
    (lost,) = house.manager.catalog.warnings
    assert ", m18, m19 and 2 more; 'cortexctl unregister' removes" in lost


async def test_a_stop_that_cannot_be_written_down_says_how_it_is_done_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.running()
    monkeypatch.setattr(house.store, "begin", fail(StoreFailed("models.db: the disk is full; make room")))
    with pytest.raises(StoreFailed) as caught:
        await house.stop()
    assert str(caught.value).endswith("make room; 'systemctl --user stop cortex-a.service' stops it all the same")
