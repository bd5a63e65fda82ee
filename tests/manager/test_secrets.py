"""Secrets as the manager keeps them: with whom they come and go, what is told of them, and when a restart is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cortexd.api.describe import model_properties
from cortexd.checks import OPEN_TO_ALL
from cortexd.errors import CortexError, InvalidConfig, NoSuchModel, NoSuchSecret, StoreFailed, SystemdUnavailable
from cortexd.units.files import FileState
from tests.manager.steps import fail
from tests.support.house import ME, House

VALUE = b"canary of a value"


async def set_secret(house: House, key: str = "HF_TOKEN", value: bytes = VALUE, name: str = "a") -> bool:
    return await house.manager.set_secret(name, key, value, ME)


def told(house: House, name: str = "a") -> dict[str, Any]:
    """The model's properties."""
    return model_properties(house.manager.view(name))


async def test_set_and_removed(house: House) -> None:
    await house.register()
    changed: list[str] = []
    house.manager.on_change = changed.append
    text, asked = house.path().read_text(), len(house.systemd.calls)
    assert not await set_secret(house), "nothing runs"
    assert "a" in changed
    assert told(house)["Secrets"] == ["HF_TOKEN"]
    assert house.manager.catalog.secrets.value("a", "HF_TOKEN") == VALUE.decode()
    assert (house.path().read_text(), len(house.systemd.calls)) == (text, asked), "systemd has nothing to do with it"
    await house.manager.remove_secret("a", "HF_TOKEN", ME)
    assert told(house)["Secrets"] == []
    with pytest.raises(NoSuchSecret):
        await house.manager.remove_secret("a", "HF_TOKEN", ME)
    events = [event for event in await house.events() if event.kind.startswith("secret")]
    assert [(e.kind, e.message, e.actor) for e in events] == [
        ("secret-set", "secret HF_TOKEN set", "me[1]"),
        ("secret-removed", "secret HF_TOKEN removed", "me[1]"),
    ]
    assert VALUE.decode() not in str(events)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("PATH", VALUE, "which code"), ("CUDA_VISIBLE_DEVICES", VALUE, "by cortexd itself"), ("LLAMA_ARG_MODEL", VALUE, "by cortexd itself"),
     ("lower", VALUE, "A to Z"), ("A", b"", "empty"), ("A", VALUE + b"\n", "control")],
)  # fmt: skip
async def test_refused_without_a_trace(house: House, key: str, value: bytes, says: str) -> None:
    await house.register()
    with pytest.raises(InvalidConfig, match=says) as caught:
        await set_secret(house, key, value)
    assert VALUE.decode() not in str(caught.value)
    assert (told(house)["Secrets"], await house.kinds()) == ([], ["registered"])


async def test_of_a_model_that_is_not_there(house: House) -> None:
    with pytest.raises(NoSuchModel):
        await set_secret(house)
    assert house.manager.catalog.secrets.models() == []


async def test_a_restart_is_needed_until_the_next_run_also_for_a_later_daemon(house: House) -> None:
    await house.running()
    assert not told(house)["RestartNeeded"]
    assert await set_secret(house)
    assert not await set_secret(house, name="a") or told(house)["RestartNeeded"]
    await house.close()
    await house.open()
    assert told(house)["RestartNeeded"] and told(house)["Secrets"] == ["HF_TOKEN"]
    await (await house.restart()).wait()
    await house.until_event("ready")
    assert not told(house)["RestartNeeded"]
    await house.close()
    await house.open()
    assert not told(house)["RestartNeeded"]
    assert not await set_secret(house), "the value that it has already"
    await house.manager.remove_secret("a", "HF_TOKEN", ME)
    assert told(house)["RestartNeeded"]


async def test_back_to_what_the_server_was_started_with(house: House) -> None:
    await house.running()
    assert await set_secret(house)
    await house.manager.remove_secret("a", "HF_TOKEN", ME)
    assert not told(house)["RestartNeeded"]


async def test_settings_and_secrets_do_not_forget_each_other(house: House) -> None:
    await house.register()
    await set_secret(house)
    await house.manager.set("a", {"memory": "2G"}, ME)
    assert told(house)["Secrets"] == ["HF_TOKEN"]
    assert house.manager.view("a").model.definition.secrets == house.manager.catalog.secrets.known("a")


async def test_they_go_with_their_model(house: House) -> None:
    await house.register()
    await house.register("b")
    await set_secret(house)
    await set_secret(house, name="b")
    await (await house.unregister()).wait()
    assert house.manager.catalog.secrets.models() == ["b"]
    await house.register()
    assert told(house)["Secrets"] == []


async def test_a_new_model_does_not_inherit_those_of_one_that_died_with_the_daemon(house: House) -> None:
    house.manager.catalog.secrets.set("a", "HF_TOKEN", VALUE)
    await house.close()
    await house.open()
    (warning,) = house.manager.catalog.warnings
    assert "secrets/a/environment" in warning and "no model 'a'" in warning
    await house.register()
    assert (told(house)["Secrets"], house.manager.catalog.secrets.models()) == ([], [])


async def test_a_broken_file_is_a_warning_and_the_model_lives(house: House) -> None:
    await house.register()
    await set_secret(house)
    house.manager.catalog.secrets.path("a").write_text("HF_TOKEN=x\n")
    await house.close()
    await house.open()
    assert any("is not as cortexd wrote it" in w for w in told(house)["Warnings"])
    with pytest.raises(StoreFailed, match="is not as cortexd wrote it"):
        await house.start()  # it might be open to everybody without its key
    with pytest.raises(StoreFailed):
        await set_secret(house, "OTHER")
    assert (await house.kinds())[-1] == "secret-set", "what was refused is not told as done"
    assert await house.store.unfinished() == []
    house.manager.catalog.secrets.path("a").unlink()
    await set_secret(house, "OTHER")
    assert told(house)["Warnings"] == [] and told(house)["Secrets"] == ["OTHER"]
    house.manager.catalog.secrets.path("a").unlink()
    await (await house.start()).wait()
    assert told(house)["Secrets"] == []


# ------------------------------------------------------------------------------------------------- a key of its own


def tgi(house: House) -> dict[str, object]:
    return {"backend": "tgi", "path": "org/name", "exec": str(house.server), "port": "auto", "host": "0.0.0.0"}


def kept_away(house: House) -> set[str]:
    """The variables that the unit takes from its server."""
    lines = house.path().read_text().splitlines()
    return {name for line in lines if line.startswith("UnsetEnvironment=") for name in line.partition("=")[2].split()}


async def test_a_key_that_the_session_has_by_chance_is_kept_away_and_a_secret_is_not(house: House) -> None:
    """UnsetEnvironment= takes away what EnvironmentFile= gives, too."""
    await house.manager.register("a", tgi(house), ME)
    assert "API_KEY" in kept_away(house)
    assert any(OPEN_TO_ALL in w for w in told(house)["Warnings"])
    await set_secret(house, "API_KEY")
    assert "API_KEY" not in kept_away(house) and "PORT" in kept_away(house)
    assert not any(OPEN_TO_ALL in w for w in told(house)["Warnings"])
    await house.close()
    await house.open()
    assert "API_KEY" not in kept_away(house)
    assert house.manager.view("a").model.file_state is FileState.CURRENT
    await house.manager.remove_secret("a", "API_KEY", ME)
    assert "API_KEY" in kept_away(house)


async def test_generated(house: House) -> None:
    warnings = await house.manager.register("a", tgi(house), ME, api_key=True)
    assert not any(OPEN_TO_ALL in w for w in warnings)
    key = house.manager.catalog.secrets.value("a", "API_KEY")
    assert key and len(key) == 43 and "API_KEY" not in kept_away(house)
    assert (told(house)["Secrets"], key in str(await house.events())) == (["API_KEY"], False)
    await house.manager.register("b", tgi(house), ME, api_key=True)
    assert house.manager.catalog.secrets.value("b", "API_KEY") != key


async def test_no_key_where_the_backend_asks_for_none(house: House) -> None:
    given = {"backend": "ollama", "path": "llama3", "exec": str(house.server), "port": "auto"}
    with pytest.raises(InvalidConfig, match=r"^api_key='auto': ollama asks its clients for no key"):
        await house.manager.register("a", given, ME, api_key=True)
    assert (list(house.manager.catalog.models), house.manager.catalog.secrets.models()) == ([], [])


@pytest.mark.parametrize("where", ["store", "reload", "secrets"])
async def test_all_of_it_or_nothing(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def blocking(error: Exception) -> Callable[..., Any]:
        def failing(*_: object, **__: object) -> None:
            raise error

        return failing

    with monkeypatch.context() as patch:
        if where == "store":
            patch.setattr(house.store, "save_models", fail(StoreFailed("disk full")))
        elif where == "reload":
            patch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
        else:
            patch.setattr("cortexd.secrets.os.rename", blocking(OSError(28, "No space left on device")))
        with pytest.raises(CortexError):
            await house.manager.register("a", tgi(house), ME, api_key=True)
    assert (list(house.manager.catalog.models), house.path().exists()) == ([], False)
    assert house.manager.catalog.secrets.models() == []
    await house.manager.register("a", tgi(house), ME, api_key=True)
    assert told(house)["Secrets"] == ["API_KEY"]
