"""Ollama from end to end: the real daemon and systemd, the stand-in, and the waiter that has it load the model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.client import Client
from tests.backends.conftest import Gate
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.standins import StandIn
from tests.support.units import properties, systemctl
from tests.support.wait import until

STORE = Path.home() / ".ollama"
TOLD = STORE / "told.json"


@pytest.fixture(autouse=True)
def own_store() -> Iterator[None]:
    """Every test begins with an Ollama that was never run."""
    subprocess.run(["rm", "-rf", STORE], check=True)
    yield
    subprocess.run(["rm", "-rf", STORE], check=True)


@pytest.fixture
def cortex(shared_daemon: Daemon) -> Iterator[Cortex]:
    """The command line on a daemon that all tests here share."""
    client = Cortex()
    yield client
    client.run("unregister", "--force", "*", check=False)


def register(cortex: Cortex, ollama: StandIn, name: str, path: str, *more: str) -> Client:
    """Register a model of it and return who asks its server."""
    cortex.run(
        "register", name, "--backend", "ollama", "--path", path, "--exec", str(ollama.program), "--port", "auto",
        "--gpus", "none", "--memory", "1G", "--set", "Restart=no", *more,
    )  # fmt: skip
    return Client(cortex.out("url", name).strip())


def told() -> dict[str, Any]:
    """What the server saw of its start."""
    found = json.loads(TOLD.read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture
def strays() -> Iterator[None]:
    """Variables in the manager's environment that would be options of somebody's."""
    names = {
        "LLAMA_ARG_MODEL": "/other.gguf",
        "LLAMA_ARG_CTX_SIZE": "7",
        "OLLAMA_HOST": "0.0.0.0:1",
        "OLLAMA_KEEP_ALIVE": "1s",
    }
    systemctl("set-environment", *(f"{name}={value}" for name, value in names.items()))
    yield
    systemctl("unset-environment", *names)


def test_a_registered_model_is_pulled_loaded_and_kept(cortex: Cortex, ollama: StandIn, strays: None) -> None:
    ollama.script(registry={"llama3:8b": 5000}, tell=str(TOLD))
    client = register(cortex, ollama, "o", "llama3:8b", "--max-model-len", "2048")
    cortex.run("start", "o")
    (model,) = client.ask("/api/ps")[1][0]["models"]
    assert (model["name"], model["context_length"]) == ("llama3:8b", 2048)
    assert model["expires_at"] > "2100"  # it stays
    assert cortex.until_state("o", "ready")

    seen = told()
    port = client.url.rpartition(":")[2]
    assert seen["argv"] == [str(ollama.program), "serve"]
    wanted = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_CONTEXT_LENGTH": "2048", "OLLAMA_KEEP_ALIVE": "-1",
              "OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_NOPRUNE": "1", "OLLAMA_LOAD_TIMEOUT": "3600s",
              "OLLAMA_MODELS": str(STORE / "models"), "CUDA_VISIBLE_DEVICES": "-1"}  # fmt: skip
    assert seen["environ"].items() >= wanted.items()
    assert not [name for name in seen["environ"] if name.startswith("LLAMA_ARG_")]

    cortex.run("stop", "o")
    assert properties("cortex-o.service", "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0",
    }  # fmt: skip
    assert client.ask("/api/version")[0] == 0


def test_what_is_there_is_not_pulled_again(cortex: Cortex, ollama: StandIn) -> None:
    ollama.script(registry={"llama3": 5000})
    client = register(cortex, ollama, "again", "llama3")
    cortex.run("start", "again")
    cortex.run("stop", "again")
    ollama.script(pull_error="nobody may ask the registry again")
    cortex.run("start", "again")
    assert client.loaded() == ["llama3:latest"]


def test_a_model_of_a_gguf_file(cortex: Cortex, ollama: StandIn, tiny_gguf: Path) -> None:
    client = register(cortex, ollama, "Mine", str(tiny_gguf))
    cortex.run("start", "Mine")
    (name,) = client.loaded()
    assert name.startswith("cortex/mine-") and name.endswith(":latest")
    blobs = STORE / "models" / "blobs"
    assert [blob.stat().st_size for blob in blobs.iterdir()] == [tiny_gguf.stat().st_size]
    cortex.run("restart", "Mine")
    assert client.loaded() == [name]


def test_two_servers_share_the_store_and_not_the_model(cortex: Cortex, ollama: StandIn) -> None:
    ollama.script(registry={"a": 10, "hf.co/org/b:Q4_K_M": 20})
    first = register(cortex, ollama, "first", "a")
    second = register(cortex, ollama, "second", "hf.co/org/b:Q4_K_M")
    cortex.run("start", "first", "second")
    assert (first.loaded(), second.loaded()) == (["a:latest"], ["hf.co/org/b:Q4_K_M"])
    assert {m["name"] for m in first.ask("/api/tags")[1][0]["models"]} == {"a:latest", "hf.co/org/b:Q4_K_M"}


@pytest.mark.parametrize(
    ("directions", "sentence"),
    [
        ({}, "the model llama3:8b does not exist"),
        ({"pull_error": "max retries exceeded: no route to host"}, "max retries exceeded: no route to host"),
        (
            {
                "registry": {"llama3:8b": 100},
                "load_error": "model requires more system memory (40.0 GiB) than is available",
            },
            "it needs 40.0 GiB of memory, which the machine does not have free",
        ),
    ],
)
def test_a_model_that_cannot_be_had_or_loaded_fails_the_start_with_the_reason(
    cortex: Cortex, ollama: StandIn, directions: dict[str, Any], sentence: str
) -> None:
    ollama.script(**directions)
    register(cortex, ollama, "gone", "llama3:8b")
    assert sentence in cortex.fails("start", "gone")
    assert cortex.properties("gone")["State"] == "failed"


def test_it_is_starting_until_the_model_is_loaded(cortex: Cortex, ollama: StandIn, gate: Gate) -> None:
    """Its server answers all the time."""
    ollama.script(registry={"slow": 100}, load_gate=str(gate), tell=str(TOLD))
    client = register(cortex, ollama, "slow", "slow")
    cortex.run("start", "--no-block", "slow")
    until(lambda: "slow:latest" in json.dumps(client.ask("/api/tags")[1]), "the model in the store")
    assert client.ask("/api/tags")[0] == 200
    assert cortex.properties("slow")["State"] == "starting"
    assert properties("cortex-slow.service", "SubState") == {"SubState": "start-post"}
    gate.open()
    cortex.until_state("slow", "ready")
    assert client.loaded() == ["slow:latest"]


def test_how_far_a_download_is_shows_as_the_units_status(cortex: Cortex, ollama: StandIn, gate: Gate) -> None:
    ollama.script(registry={"big": 100}, pull_gate=str(gate))
    register(cortex, ollama, "big", "big")
    cortex.run("start", "--no-block", "big")
    until(lambda: "50 %" in properties("cortex-big.service", "StatusText")["StatusText"], "half of it")
    gate.open()
    cortex.until_state("big", "ready")


def test_a_model_that_only_embeds(cortex: Cortex, ollama: StandIn) -> None:
    ollama.script(registry={"nomic-embed-text": 100}, embeds=["nomic-embed-text"])
    client = register(cortex, ollama, "embed", "nomic-embed-text")
    cortex.run("start", "embed")
    assert client.loaded() == ["nomic-embed-text:latest"]


def test_a_stop_in_the_middle_of_a_load_is_clean(cortex: Cortex, ollama: StandIn, gate: Gate) -> None:
    ollama.script(registry={"slow": 100}, load_gate=str(gate), tell=str(TOLD))
    client = register(cortex, ollama, "halted", "slow")
    cortex.run("start", "--no-block", "halted")
    until(lambda: "slow:latest" in json.dumps(client.ask("/api/tags")[1]), "the model in the store")
    cortex.run("stop", "halted")
    assert properties("cortex-halted.service", "ActiveState", "Result") == {
        "ActiveState": "inactive",
        "Result": "success",
    }
    assert not Path(f"/proc/{told()['pid']}").exists()


def test_a_folder_that_it_cannot_write_is_said_before_it_starts(cortex: Cortex, ollama: StandIn) -> None:
    """Its key lies there: it would end with 1."""
    register(cortex, ollama, "keyless", "llama3")
    (STORE / "models").mkdir(parents=True)
    STORE.chmod(0o500)
    try:
        said = cortex.fails("start", "keyless")
    finally:
        STORE.chmod(0o700)
    assert str(STORE) in said and "writ" in said
