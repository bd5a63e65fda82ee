"""Many models in one call: all of them, each whole, or nothing; one transaction, one reload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cortexd.errors import CortexError, InvalidConfig, InvalidName, ModelExists, StoreFailed, UnitConflict
from cortexd.units.files import FileState
from tests.manager.steps import everything, fail
from tests.support.house import ME, House


def rack(house: House, *names: str, **settings: str) -> dict[str, dict[str, object]]:
    given = {"backend": "llamacpp", "path": str(house.gguf), "exec": str(house.server), "port": "auto", "gpus": "none"}
    return {name: dict(given, **settings) for name in names}


async def test_all_are_registered_with_one_reload(house: House) -> None:
    added: list[str] = []
    house.manager.on_add = added.append
    house.systemd.calls.clear()
    models = await house.manager.register_all(rack(house, "a", "b", "c"), ME)
    assert added == ["a", "b", "c"] == [model.name for model in models]
    assert house.systemd.calls == [("Reload",)]
    assert all(model.file_state is FileState.CURRENT for model in models)
    assert len({model.spec.port for model in models}) == 3, "each has a port of its own"
    assert [house.unit(name).load_state for name in added] == ["loaded"] * 3
    assert [(await house.events(name))[0].actor for name in added] == ["me[1]"] * 3


async def test_a_rack_survives_the_daemon(house: House) -> None:
    await house.manager.register_all(rack(house, "a", "b"), ME)
    await house.close()
    await house.open()
    assert sorted(house.manager.catalog.models) == ["a", "b"]


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda rack: rack.update({"-x": rack["b"]}), InvalidName, "-x: name '-x'"),
        (lambda rack: rack["b"].update(port="70000"), InvalidConfig, "b: port='70000'"),
        (lambda rack: rack["b"].update(path="/nowhere.gguf"), InvalidConfig, "b: path="),
        (lambda rack: rack.update(there=rack["b"]), ModelExists, "there: model 'there' is registered already"),
        (lambda rack: rack.update(foreign=rack["b"]), UnitConflict, "foreign: "),
    ],
)
async def test_one_that_cannot_be_keeps_all_away(
    house: House, spoil: Callable[[dict[str, dict[str, object]]], None], error: type[CortexError], says: str
) -> None:
    await house.register("there")
    house.path("foreign").write_text("[Service]\nExecStart=/bin/true\n")
    wanted = rack(house, "a", "b")
    spoil(wanted)
    before = everything(house)
    with pytest.raises(error) as caught:
        await house.manager.register_all(wanted, ME)
    assert str(caught.value).startswith(says)
    assert everything(house) == before


@pytest.mark.parametrize("step", ["save_models", "reload"])
async def test_a_failure_on_the_way_takes_all_back(house: House, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    owner = house.store if step == "save_models" else house.systemd
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail(StoreFailed("no")))
        with pytest.raises(StoreFailed):
            await house.manager.register_all(rack(house, "a", "b"), ME, api_key=True)
    assert house.manager.catalog.models == {} and await house.store.models() == []
    assert not house.path("a").exists() and not house.path("b").exists()
    assert house.manager.catalog.secrets.models() == []
    await house.manager.register_all(rack(house, "a", "b"), ME)


async def test_each_gets_a_key_of_its_own(house: House) -> None:
    await house.manager.register_all(rack(house, "a", "b"), ME, api_key=True)
    catalog = house.manager.catalog
    keys = [catalog.secrets.value(name, "LLAMA_API_KEY") for name in ("a", "b")]
    assert all(keys) and keys[0] != keys[1]


async def test_ports_in_common_are_told_of_both_sides(house: House) -> None:
    await house.register("old", port="18001")
    await house.manager.register_all(rack(house, "a", "b", port="18001"), ME)
    for name in ("a", "b", "old"):
        assert any(warning.startswith("port=18001: models") for warning in house.manager.catalog.get(name).warnings)


async def test_two_racks_at_once_share_no_port(house: House) -> None:
    await asyncio.gather(
        house.manager.register_all(rack(house, "a", "b"), ME), house.manager.register_all(rack(house, "c", "d"), ME)
    )
    assert len({model.spec.port for model in house.manager.catalog.models.values()}) == 4
