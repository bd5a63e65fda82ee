"""`cortexctl check` and preflight at a start, on the real manager: real sandboxes, a real llama-server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program, properties, systemctl

NAME = "examined"


@pytest.fixture
def cortex(shared_daemon: Daemon) -> Iterator[Cortex]:
    """The command line; the model is gone afterwards."""
    client = Cortex()
    yield client
    client.run("unregister", "--force", NAME, check=False)


def runtime_units() -> list[Path]:
    return [*Path(os.environ["XDG_RUNTIME_DIR"], "systemd", "user").glob("cortexd-check-*")]


def findings(cortex: Cortex, status: int) -> list[str]:
    """What is found, as lines without the model's name."""
    done = cortex.run("check", NAME, check=False)
    assert (done.returncode, done.stderr) == (status, ""), done
    return [line.removeprefix(f"{NAME}: ") for line in done.stdout.splitlines()]


def test_nothing_found(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    assert findings(cortex, 0) == ["nothing found that would keep it from starting"]
    assert cortex.json("check", NAME) == [{"Name": NAME, "findings": []}]
    assert runtime_units() == []
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "cortexd-check-*").stdout
    assert listed == ""
    cortex.run("start", NAME)
    assert findings(cortex, 0) == ["nothing found that would keep it from starting"]  # its own port is not in its way


def test_a_truncated_file_is_found_and_not_started(cortex: Cortex) -> None:
    model = Path.home() / "cut.gguf"
    shutil.copy(lab.TINY_GGUF, model)
    size = model.stat().st_size
    cortex.register_tiny(NAME, model=model)
    os.truncate(model, size // 2)
    said = f"path={model}: is cut off: 237.8K are there of 475.7K; download it again"
    assert findings(cortex, 1) == [f"error: {said}"]
    assert said in cortex.fails("start", NAME)
    assert cortex.properties(NAME)["ActiveState"] == "inactive"


def test_what_a_drop_in_hides(cortex: Cortex) -> None:
    """Only the look from inside can know: cortexd did not write this line."""
    folder = Path.home() / "models"
    folder.mkdir(exist_ok=True)
    model = Path(shutil.copy(lab.TINY_GGUF, folder / "m.gguf"))
    cortex.register_tiny(NAME, model=model)
    drop_ins = Path(cortex.properties(NAME)["FragmentPath"] + ".d")
    drop_ins.mkdir()
    try:
        (drop_ins / "hide.conf").write_text(
            f"[Service]\nInaccessiblePaths={folder}\nExecStart=\nExecStart=/bin/false\n"
        )
        systemctl("daemon-reload")
        (line,) = findings(cortex, 1)
    finally:
        shutil.rmtree(drop_ins)
        systemctl("daemon-reload")
    assert line.startswith(f"error: path={model}: cannot be read inside the sandbox: Permission denied; ")
    assert runtime_units() == []


def test_links_out_of_what_the_sandbox_shows(cortex: Cortex) -> None:
    """As in the hub's cache: a snapshot's files are links to blobs beside it."""
    server = lab.LLAMA_SERVER
    repository = Path("/tmp") / f"models--a--b-{os.getpid()}"
    snapshot = repository / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blobs = repository / "blobs"
    blobs.mkdir()
    shutil.copy(lab.TINY_GGUF, blobs / "x")
    (snapshot / "m-00001-of-00001.gguf").symlink_to("../../blobs/x")
    try:
        cortex.register_tiny(NAME, "--exec", str(server), model=snapshot / "m-00001-of-00001.gguf")
        lines = findings(cortex, 1)
        refused = cortex.fails("start", NAME)
        cortex.run("set", NAME, "PrivateTmp=false")
        assert findings(cortex, 0) == ["nothing found that would keep it from starting"]
    finally:
        shutil.rmtree(repository)
    said = f"links to {blobs}/x, which the sandbox hides; move it elsewhere, or set PrivateTmp=false"
    assert lines[0].endswith(said) and said in refused


def test_a_folder_that_cannot_be_written(cortex: Cortex) -> None:
    folder = Path.home() / "closed"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o500)
    try:
        cortex.register_tiny(NAME, "--set", f"ReadWritePaths={folder}")
        (line,) = findings(cortex, 1)
    finally:
        folder.chmod(0o700)
    assert line.startswith(f"error: folder={folder}: cannot be written")


def test_a_program_that_does_not_run(cortex: Cortex) -> None:
    program = Path.home() / "llama-server"
    program.write_text("#!/bin/sh\necho 'libllama.so.0: cannot open shared object file' >&2\nexit 127\n")
    program.chmod(0o755)
    cortex.register_tiny(NAME, "--exec", str(program))
    said = f"exec={program}: ended with status 127 when asked for '--version': libllama.so.0: cannot open shared object file"
    assert said in findings(cortex, 1)[0]
    assert said in cortex.fails("start", NAME)
    make_program(program)
    cortex.run("start", NAME)


def test_a_port_that_is_held(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    cortex.run("start", NAME)
    port = cortex.properties(NAME)["Settings"]["port"]
    cortex.register_tiny("other", "--port", str(port))
    try:
        done = cortex.run("check", "other", NAME, "--json", check=False)
    finally:
        cortex.run("unregister", "other")
    assert done.returncode == 1
    other, own = json.loads(done.stdout)
    assert own["findings"] == []
    (found,) = other["findings"]
    assert (found["what"], found["value"], found["problem"]) == ("port", str(port), f"is held by model {NAME}")


def test_what_a_killed_daemon_left_is_removed(shared_daemon: Daemon) -> None:
    shared_daemon.stop()
    name = "cortexd-check-a-1-1.service"
    unit = Path(os.environ["XDG_RUNTIME_DIR"], "systemd", "user", name)
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n")
    Path(f"{unit}.d").mkdir()
    systemctl("start", name)
    shared_daemon.start()
    assert runtime_units() == []
    assert properties(name, "LoadState", "ActiveState") == {"LoadState": "not-found", "ActiveState": "inactive"}
