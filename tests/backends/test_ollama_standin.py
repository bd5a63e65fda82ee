"""Ollama's stand-in against its documentation: what the waiter and the tests of the daemon rely on."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.backends.client import Client
from tests.support.standins import StandIn
from tests.support.units import free_port
from tests.support.wait import until


def environment(home: Path, **variables: str) -> dict[str, str]:
    """What a unit would give it."""
    return {
        "HOME": str(home),
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
        **variables,
    }


@contextmanager
def serving(program: StandIn, home: Path, **variables: str) -> Iterator[Client]:
    """A server and a client of it."""
    port = free_port()
    given = environment(home, **{"OLLAMA_HOST": f"127.0.0.1:{port}", **variables})
    process = subprocess.Popen(
        [program.program, "serve"], env=given, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        until(lambda: client.ask("/api/version")[0] == 200 or process.poll() is not None, "the stand-in")
        assert process.poll() is None
        yield client
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def fails(program: StandIn, *arguments: str, **variables: str) -> str:
    """What it says when it ends with 1."""
    done = subprocess.run([program.program, *arguments], env=variables, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "x"], "accepts 0 arg(s), received 1"),
        (["serve", "--port", "1"], "unknown flag: --port"),
        (["load"], 'unknown command "load" for "ollama"'),
    ],
)
def test_arguments_that_it_does_not_know(ollama: StandIn, tmp_path: Path, arguments: list[str], says: str) -> None:
    assert fails(ollama, *arguments, **environment(tmp_path)) == f"Error: {says}\n"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OLLAMA_HOST", "127.0.0.1:99999", "invalid port"),
        ("OLLAMA_MODEL", "llama3", "is no variable of ollama's"),
        ("LLAMA_ARG_MODEL", "/x.gguf", "would be an option of the llama-server"),
        ("OLLAMA_KEEP_ALIVE", "forever", "invalid duration"),
        ("HOME", "", "$HOME is not defined"),
    ],
)
def test_variables_that_it_cannot_use(ollama: StandIn, tmp_path: Path, variable: str, value: str, says: str) -> None:
    assert says in fails(ollama, "serve", **environment(tmp_path, **{variable: value}))


def test_it_needs_a_key_and_a_folder_for_it(ollama: StandIn, tmp_path: Path) -> None:
    with serving(ollama, tmp_path):
        assert (tmp_path / ".ollama" / "id_ed25519").stat().st_mode & 0o777 == 0o600
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "could not create directory mkdir" in fails(ollama, "serve", **environment(closed))


def test_a_port_that_is_taken(ollama: StandIn, tmp_path: Path) -> None:
    with serving(ollama, tmp_path) as client:
        host = client.url.removeprefix("http://")
        said = fails(ollama, "serve", **environment(tmp_path, OLLAMA_HOST=host))
    assert f"listen tcp {host}: bind: address already in use" in said


@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}/", '"127.0.0.1:{port}"', " 127.0.0.1:{port} "])
def test_forms_of_its_address(ollama: StandIn, tmp_path: Path, form: str) -> None:
    port = free_port()
    process = subprocess.Popen(
        [ollama.program, "serve"],
        env=environment(tmp_path, OLLAMA_HOST=form.format(port=port)),
        stderr=subprocess.DEVNULL,
    )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        until(lambda: client.ask("/api/version")[0] == 200, "the stand-in")
    finally:
        process.kill()
        process.wait()


def test_pull_load_and_unload(ollama: StandIn, tmp_path: Path) -> None:
    ollama.script(registry={"llama3": 1000})
    with serving(ollama, tmp_path, OLLAMA_CONTEXT_LENGTH="77") as client:
        assert client.ask("/api/generate", {"model": "llama3"}) == (404, [{"error": "model 'llama3' not found"}])
        assert client.ask("/api/show", {"model": "llama3"})[0] == 404
        status, told = client.ask("/api/pull", {"model": "llama3"})
        assert status == 200 and (told[0], told[-1]) == ({"status": "pulling manifest"}, {"status": "success"})
        assert [line["completed"] for line in told if "completed" in line] == [500, 1000]
        assert client.loaded() == []  # it only has it now
        status, (answer,) = client.ask("/api/generate", {"model": "LLAMA3:latest", "keep_alive": -1})
        assert (status, answer["done"], answer["done_reason"]) == (200, True, "load")
        (model,) = client.ask("/api/ps")[1][0]["models"]
        assert (model["name"], model["context_length"]) == ("llama3:latest", 77)
        assert model["expires_at"] > "2100"
        one = {"model": "llama3", "prompt": "a", "stream": False, "options": {"num_predict": 1}}
        assert client.ask("/api/generate", one)[1][0]["eval_count"] == 1
        assert client.ask("/api/generate", {"model": "llama3", "keep_alive": 0})[1][0]["done_reason"] == "unload"
        assert client.loaded() == []


def test_a_second_model_takes_the_place_of_the_first(ollama: StandIn, tmp_path: Path) -> None:
    ollama.script(registry={"a": 10, "me/b:1": 10})
    with serving(ollama, tmp_path) as client:
        for model in ("a", "me/b:1"):
            client.ask("/api/pull", {"model": model})
            client.ask("/api/generate", {"model": model})
        assert client.loaded() == ["me/b:1"]


def test_a_model_of_a_file(ollama: StandIn, tmp_path: Path) -> None:
    data = b"GGUF" + os.urandom(100)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with serving(ollama, tmp_path) as client:
        assert client.ask(f"/api/blobs/{digest}", method="HEAD")[0] == 404
        status, (answer,) = client.ask(f"/api/blobs/{digest}", data + b"more")
        assert status == 400 and "digest mismatch" in answer["error"]
        assert client.ask("/api/blobs/sha256:no-digest", data)[0] == 400
        assert client.ask(f"/api/blobs/{digest}", data)[0] == 201
        assert client.ask(f"/api/blobs/{digest}", method="HEAD")[0] == 200
        unknown = {"model": "cortex/m", "files": {"m.gguf": "sha256:" + "0" * 64}}
        assert client.ask("/api/create", unknown)[0] == 400
        assert client.ask("/api/create", {"model": "a/b/c/d", "files": {"m.gguf": digest}})[0] == 400
        assert client.ask("/api/create", {"model": "m", "files": {"/m.gguf": digest}})[0] == 400
        status, told = client.ask("/api/create", {"model": "cortex/m", "files": {"m.gguf": digest}})
        assert status == 200 and told[-1] == {"status": "success"}
        assert digest.replace(":", "-") in client.ask("/api/show", {"model": "cortex/m"})[1][0]["modelfile"]
        assert client.ask("/api/generate", {"model": "cortex/m"})[0] == 200
        assert client.loaded() == ["cortex/m:latest"]


def test_failures_are_told_in_the_stream(ollama: StandIn, tmp_path: Path) -> None:
    ollama.script(registry={"a": 10}, load_error="llama runner process has terminated")
    with serving(ollama, tmp_path) as client:
        status, told = client.ask("/api/pull", {"model": "absent"})
        assert (status, told[-1]) == (200, {"error": "pull model manifest: file does not exist"})
        client.ask("/api/pull", {"model": "a"})
        assert client.ask("/api/generate", {"model": "a"}) == (500, [{"error": "llama runner process has terminated"}])


def test_without_noprune_it_removes_what_no_model_has(ollama: StandIn, tmp_path: Path) -> None:
    """Which is why every server of ours says OLLAMA_NOPRUNE: another one may be receiving just that."""
    ollama.script(registry={"a": 10})
    stray = tmp_path / ".ollama" / "models" / "blobs" / "sha256-stray"
    with serving(ollama, tmp_path) as client:
        client.ask("/api/pull", {"model": "a"})
        stray.write_bytes(b"half of a model")
    with serving(ollama, tmp_path) as client:
        assert stray.exists()
    with serving(ollama, tmp_path, OLLAMA_NOPRUNE="") as client:
        assert not stray.exists()
        assert client.ask("/api/generate", {"model": "a"})[0] == 200


def test_the_official_client_is_content_with_it(ollama: StandIn, tmp_path: Path) -> None:
    """PyPI's `ollama` checks every answer's form."""
    client_library = pytest.importorskip("ollama")
    ollama.script(registry={"llama3:8b": 1000})
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with serving(ollama, tmp_path) as server, client_library.Client(server.url) as client:
        assert [told.completed for told in client.pull("llama3:8b", stream=True) if told.completed] == [500, 1000]
        digest = client.create_blob(file)
        assert client.create("cortex/m", files={file.name: digest}).status == "success"
        assert {model.model for model in client.list().models} == {"llama3:8b", "cortex/m:latest"}
        assert client.show("llama3:8b").details.format == "gguf"
        assert client.generate("llama3:8b", keep_alive=-1).done_reason == "load"
        (running,) = client.ps().models
        assert (running.model, running.size) == ("llama3:8b", 1000)
        assert client.generate("llama3:8b", "a", options={"num_predict": 2}).eval_count == 2
        assert [part.response for part in client.generate("llama3:8b", "a", stream=True)] == ["a", "a", "a", ""]
        with pytest.raises(client_library.ResponseError, match="model 'absent' not found"):
            client.generate("absent")
        with pytest.raises(client_library.ResponseError, match="file does not exist"):
            client.pull("absent")
