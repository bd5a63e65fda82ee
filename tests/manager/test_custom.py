"""Models of a backend file that changes, breaks or goes away while they are registered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cortexd.errors import InvalidConfig, PortInUse
from cortexd.registered import Model
from cortexd.states import State
from tests.backends_custom.forms import SMALL, put
from tests.manager.steps import again
from tests.support.house import ME, House

FIRST = SMALL.replace('"{port}"]', '"{port}", "--first"]')
SECOND = SMALL.replace('"{port}"]', '"{port}", "--second"]') + "stop_seconds = 77\n"
BROKEN = SMALL.replace("{port}", "{prot}")


def model(house: House) -> Model:
    return house.manager.view("a").model


async def custom(house: House) -> Path:
    """A model of a backend file, registered; returns the file."""
    file = put(house.scope, "mine", FIRST)
    await house.register(backend="mine")
    return file


async def look(house: House) -> Model:
    """What `status` sees."""
    await house.manager.refresh(["a"])
    return model(house)


async def test_a_file_is_a_backend_as_any_other(house: House) -> None:
    await custom(house)
    await (await house.start()).wait()
    assert '"--first"' in house.path().read_text() and house.state() is State.READY
    assert not (await look(house)).warnings


async def test_a_changed_file_reaches_the_unit_at_the_next_start(house: House) -> None:
    file = await custom(house)
    await (await house.start()).wait()
    file.write_text(SECOND)
    assert not model(house).outdated
    assert (await look(house)).outdated  # the query itself changes nothing
    assert '"--first"' in house.path().read_text()
    await (await house.restart()).wait()
    assert '"--second"' in house.path().read_text() and "TimeoutStopSec=77" in house.path().read_text()
    assert not (await look(house)).outdated
    assert model(house).plan.stop_seconds == 77


async def test_a_run_that_began_between_has_what_the_unit_file_said(house: House) -> None:
    """systemd's own restart runs the old command, whatever the file says by now."""
    file = await custom(house)
    await (await house.start()).wait()
    file.write_text(SECOND)
    await look(house)
    await house.systemd.restart_unit("cortex-a.service")
    await house.until(State.READY)
    assert (await look(house)).outdated


async def test_a_start_that_was_refused_leaves_no_doubt_what_the_unit_says(house: House) -> None:
    file = await custom(house)
    await house.register("b", port=model(house).spec.port)
    await (await house.start("b")).wait()
    file.write_text(SECOND)
    with pytest.raises(PortInUse):
        await house.start()
    assert '"--second"' in house.path().read_text()
    await (await house.stop("b")).wait()
    await house.systemd.start_unit("cortex-a.service")
    await house.until(State.READY)
    assert not (await look(house)).outdated


async def test_a_file_that_was_only_touched_changes_nothing(house: House) -> None:
    file = await custom(house)
    await (await house.start()).wait()
    before = model(house).definition
    file.write_text(FIRST + "\n# a remark\n")
    assert not (await look(house)).outdated
    assert model(house).definition is not before and model(house).definition.text == before.text


async def test_every_start_and_set_takes_the_file_as_it_is(house: House) -> None:
    file = await custom(house)
    file.write_text(SECOND)
    await house.manager.set("a", {"max_model_len": "5"}, ME)
    assert '"--second"' in house.path().read_text()
    file.write_text(FIRST)
    await (await house.start()).wait()
    assert '"--first"' in house.path().read_text()


async def test_a_changed_file_reaches_the_unit_at_the_daemons_start(house: House) -> None:
    file = await custom(house)
    await (await house.start()).wait()
    await again(house, before=lambda: file.write_text(SECOND) and None)
    assert '"--second"' in house.path().read_text()
    assert model(house).outdated and house.state() is State.READY


Harm = Callable[[Path], object]
HARMS: dict[str, tuple[Harm, str]] = {
    "gone": (lambda file: file.unlink(), "backend='mine': use one of vllm, llamacpp, ollama, tgi"),
    "broken": (lambda file: file.write_text(BROKEN), "mine.toml: command='{prot}'"),
    "unreadable": (lambda file: (file.unlink(), file.mkdir()), "mine.toml: is no regular file"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("restarted", [False, True], ids=["same daemon", "next daemon"])
async def test_a_model_outlives_its_file(house: House, harm: str, restarted: bool) -> None:
    """Listed, running, to be stopped; its unit as it was; what is wrong is a warning, and the answer to start and set."""
    file = await custom(house)
    await (await house.start()).wait()
    do, words = HARMS[harm]
    text, digest = house.path().read_bytes(), model(house).definition.digest
    if restarted:
        await again(house, before=lambda: do(file) and None)
    else:
        do(file)
    found = await look(house)
    (warning,) = found.warnings
    assert words in warning and "cannot be started or changed" in warning
    assert (house.state(), found.outdated, found.definition.digest) == (State.READY, False, digest)
    assert found.endpoint == "/health" and house.manager.catalog.warnings == []

    async def refused(action: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(InvalidConfig) as caught:
            await action()
        assert words in str(caught.value) and "mine.toml" in str(caught.value)

    await refused(lambda: house.restart())
    await refused(lambda: house.manager.set("a", {"max_model_len": "5"}, ME))
    await (await house.start()).wait()  # it runs: there is nothing to be done
    await (await house.stop()).wait()
    assert house.state() is State.STOPPED
    await refused(lambda: house.start())
    await house.manager.enable("a", ME, linger=False)
    assert house.path().read_bytes() == text
    if file.is_dir():
        file.rmdir()
    file.write_text(FIRST)
    assert (await look(house)).warnings == ()
    await (await house.start()).wait()
    assert house.path().read_bytes() == text and house.state() is State.READY


async def test_another_backend_frees_it(house: House) -> None:
    file = await custom(house)
    await again(house, before=file.unlink)
    await house.manager.set("a", {"backend": "llamacpp", "exec": str(house.server)}, ME)
    assert (await look(house)).warnings == ()
    await (await house.start()).wait()
    assert '"--alias"' in house.path().read_text()


async def test_it_can_be_unregistered_without_its_file(house: House) -> None:
    file = await custom(house)
    await again(house, before=file.unlink)
    await (await house.unregister()).wait()
    assert not house.path().exists() and not house.manager.catalog.models


async def test_a_unit_that_was_deleted_is_not_made_up(house: House) -> None:
    file = await custom(house)

    def harm() -> None:
        file.unlink()
        house.path().unlink()

    await again(house, before=harm)
    assert len((await look(house)).warnings) == 2 and not house.path().exists()


async def test_the_list_has_what_is_wrong(house: House) -> None:
    put(house.scope, "mine", BROKEN)
    house.server.rename(house.server.parent / "serve")
    put(house.scope, "yours")
    found = {listed.name: (listed, exe) for listed, exe in await house.manager.backends(f"rel:{house.server.parent}")}
    assert found["yours"][1] == str(house.server.parent / "serve")
    assert found["mine"][1] == "" and "{prot}" in found["mine"][0].problem
    assert found["vllm"][0].source == "built-in"
