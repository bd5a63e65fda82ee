"""A backend file on the real daemon and systemd: a server of the tests, from registration to stop."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortexd.scope import user_scope
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program, properties

HOSTILE = [
    'x"', "'y", "\\", "\\n[Service]", "; /bin/touch /tmp/no", "&& reboot", "%h%%", "$HOME", "${{PATH}}", "$$", "`id`", "",
    " ", "-", "+/bin/sh", "@x", "!x", "# no comment", "{{brace}}", "ExecStartPost=/bin/false", "ä €",
]  # fmt: skip
"""Words that are something else to systemd or to a shell, as a backend file writes them."""

FORM = """\
description = "a server of the tests"
executables = ["custom-server"]
command = [
  "{exec}", "--host", "{host}", "--port", "{port}", "--fake-tell", "{home}/custom/{name} 100%/told", "--model={path}",
  { when = "not gpus", args = ["--cpu"] }, { when = "gpus", args = ["--gpus"] },
  WORDS
]
endpoint = "/alive"
paths = ["file"]
environment = { GREETING = "good day, {name}: 100% \\"$HOME\\" ; x" }
unset_environment = ["CORTEX_TEST_UNSET"]
writes = ["{home}/custom/{name} 100%"]
stop_seconds = 9
"""


def form(*words: str) -> str:
    """The backend file, with more words for its command."""
    return FORM.replace("WORDS", ", ".join(json.dumps(word, ensure_ascii=False) for word in words))


class Place:
    """Where the backend file, its program and its model lie; not in /tmp, which the server does not see."""

    def __init__(self, cortex: Cortex) -> None:
        self.cortex = cortex
        self.folder = Path.home() / "custom"
        self.file = user_scope(os.environ).backend_folders[0] / "mine.toml"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.program = make_program(self.folder / "custom-server")
        self.model = self.folder / "a model"
        self.model.write_bytes(b"model")

    def register(self, name: str = "a", *more: str) -> None:
        """Register a model, with the program on the caller's PATH alone."""
        words = ("--path", str(self.model), "--backend", "mine", "--gpus", "none", "--memory", "1G", "--port", "auto")
        self.cortex.run("register", name, *words, *more, path=f"{self.folder}:{os.environ['PATH']}")

    def told(self, name: str = "a") -> dict[str, Any]:
        """argv and environment as they arrived."""
        found: dict[str, Any] = json.loads((self.folder / f"{name} 100%" / "told").read_text())
        return found


@pytest.fixture
def place(cortex: Cortex) -> Iterator[Place]:
    place = Place(cortex)
    yield place
    place.file.unlink(missing_ok=True)
    cortex.run("stop", "*", check=False)
    shutil.rmtree(place.folder)


def test_from_registration_to_stop(place: Place, cortex: Cortex) -> None:
    place.file.write_text(form(*HOSTILE))
    place.register()
    cortex.run("start", "a")
    shown = cortex.until_state("a", "ready")
    assert (shown["Settings"]["health.endpoint"], shown["Backend"]) == ("/alive", "mine")
    assert json.loads(cortex.run("health", "a", "--json").stdout)[0]["Healthy"] is True

    told = place.told()
    port = shown["Settings"]["port"]
    given = ["--host", "127.0.0.1", "--port", str(port), "--fake-tell", str(place.folder / "a 100%" / "told")]
    words = [word.replace("{{", "{").replace("}}", "}") for word in HOSTILE]
    assert told["argv"] == [*given, f"--model={place.model}", "--cpu", *words]
    assert told["environ"]["GREETING"] == 'good day, a: 100% "$HOME" ; x'
    assert told["environ"]["PATH"].startswith(f"{place.folder}:")

    unit = properties(
        "cortex-a.service", "ExecStart", "ExecStartPost", "ReadWritePaths", "UnsetEnvironment", "TimeoutStopUSec"
    )
    assert unit["ExecStart"].count("path=") == 1 and f"path={place.program} " in unit["ExecStart"]
    assert unit["ExecStartPost"].count("path=") == 1 and "bin/false" not in unit["ExecStartPost"]
    assert shlex.split(unit["ReadWritePaths"]) == [str(place.folder / "a 100%")]
    assert (unit["UnsetEnvironment"], unit["TimeoutStopUSec"]) == ("CORTEX_TEST_UNSET", "9s")

    cortex.run("stop", "a")
    cortex.until_state("a", "stopped")


def test_an_endpoint_that_asks_for_the_key(place: Place, cortex: Cortex) -> None:
    """By the waiter and the daemon alike; without one it is not waited for what will never be."""
    place.file.write_text('api_key = "CUSTOM_KEY"\n' + form("--fake-key", "CUSTOM_KEY"))
    place.register("a", "--api-key", "auto")
    cortex.run("start", "a")
    cortex.until_state("a", "ready")
    assert json.loads(cortex.run("health", "a", "--json").stdout)[0]["Healthy"] is True
    key = place.told()["environ"]["CUSTOM_KEY"]
    assert key and key not in properties("cortex-a.service", "ExecStartPost")["ExecStartPost"]

    cortex.run("stop", "a")
    cortex.run("secret", "unset", "a", "CUSTOM_KEY")
    failure = cortex.fails("start", "a")
    assert "/alive asks for a key (401), and CUSTOM_KEY holds none" in failure, failure
    told = cortex.out("why", "a")
    assert "cortexctl secret list a" in told and "startup_stall" not in told, told


def test_a_changed_file_is_a_new_command_line_at_the_next_start(place: Place, cortex: Cortex) -> None:
    place.file.write_text(form("--first"))
    place.register()
    cortex.run("start", "a")
    assert place.told()["argv"][-1] == "--first"
    place.file.write_text(form("--second", "--third"))
    shown = cortex.properties("a")
    assert (shown["RestartNeeded"], shown["State"]) == (True, "ready")
    cortex.run("restart", "a")
    assert place.told()["argv"][-2:] == ["--second", "--third"]
    assert cortex.properties("a")["RestartNeeded"] is False


@pytest.mark.parametrize("restarted", [False, True], ids=["same daemon", "next daemon"])
def test_a_model_outlives_its_file(place: Place, cortex: Cortex, daemon: Daemon, restarted: bool) -> None:
    place.file.write_text(form())
    place.register()
    cortex.run("start", "a")
    pid = cortex.properties("a")["MainPID"]
    place.file.unlink()
    if restarted:
        daemon.stop()
        daemon.start()
    shown = cortex.until_state("a", "ready")
    assert (shown["MainPID"], shown["RestartNeeded"]) == (pid, False)
    (warning,) = shown["Warnings"]
    assert "backend='mine'" in warning and "mine.toml" in warning
    assert warning in cortex.out("status", "a") and "mine.toml" in cortex.out("list")
    assert "mine.toml" in cortex.fails("set", "a", "max_model_len=5")
    cortex.run("stop", "a")
    assert "mine.toml" in cortex.fails("start", "a")
    place.file.write_text("description = 5")
    assert f"{place.file}: description=5: must be text" in cortex.fails("start", "a")
    place.file.write_text(form("--back"))
    cortex.run("start", "a")
    assert place.told()["argv"][-1] == "--back"


def test_the_verb_lists_what_there_is(place: Place, cortex: Cortex) -> None:
    place.file.write_text(form())
    broken = place.file.with_name("broken.toml")
    broken.write_text("x")
    try:
        done = cortex.run("backends", path=f"{place.folder}:{os.environ['PATH']}")
        rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
        assert rows["NAME"] == ["EXECUTABLE", "SOURCE"]
        assert rows["mine"] == [str(place.program), str(place.file)]
        assert rows["vllm"][1:] == ["built-in"] and {"sglang", "llamafile", "tei", "whisper"} < set(rows)
        assert done.stderr.startswith(f"Warning: {broken}: is no TOML") and "broken" not in rows
        found = {row["Name"]: row for row in cortex.json("backends")}
        assert found["broken"]["Problem"].startswith(str(broken)) and found["mine"]["Executable"] == ""
        words = cortex.out("__complete", "backends").split()
        assert "mine" in words and "sglang" in words and "broken" not in words
    finally:
        broken.unlink()
    assert f"put the file other.toml in {place.file.parent}" in cortex.fails(
        "register", "b", "--path", str(place.model), "--backend", "other"
    )
