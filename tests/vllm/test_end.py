"""How a real vLLM ends: while it loads, when its engine dies, when its main process is killed, and when it cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.wait import until
from tests.vllm.conftest import START, VLLM, Vllm


@pytest.fixture(scope="module")
def lives(vllm: Vllm) -> Iterator[str]:
    """The name of a model that the tests of this file start and kill; it runs as `vllm serve`."""
    # Its version says for what it is built.
    metadata = Path.home() / "packages" / "vllm-0.32.0+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    vllm.register("lives", "--exec", f"{VLLM}/bin/vllm", "--env", f"PYTHONPATH={metadata.parent.parent}")
    yield "lives"
    vllm.run("unregister", "--force", "lives")


def gone(pids: list[int]) -> bool:
    """Whether none of these processes is left."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_stop_while_it_loads(vllm: Vllm, lives: str) -> None:
    """It ends with status 1 then: its workers are gone before it is."""
    vllm.run("start", "--no-block", lives)
    vllm.until_state(lives, "starting")
    until(lambda: "VLLM::Worker" in vllm.processes(lives).values(), "a worker", START)
    processes = [*vllm.processes(lives)]
    done = vllm.run("stop", lives)
    assert done.stderr == ""
    assert gone(processes)
    assert vllm.properties(lives)["State"] == "stopped"
    assert vllm.json("events", lives)[-1]["Kind"] == "stopped"


def test_the_end_of_the_engine_is_status_0_and_a_restart(vllm: Vllm, lives: str) -> None:
    before = vllm.start(lives)
    assert before["State"] == "ready", vllm.journal(lives)[-5000:]
    assert Path(f"/proc/{before['MainPID']}/cmdline").read_bytes().split(b"\0")[1:3] == [
        f"{VLLM}/bin/vllm".encode(),
        b"serve",
    ]
    processes = vllm.processes(lives)
    (engine,) = [pid for pid, command in processes.items() if command == "VLLM::EngineCor"]
    os.kill(engine, signal.SIGKILL)

    def ended() -> str:
        said = subprocess.run(
            ["journalctl", "--user", "--quiet", "--output=cat", f"_SYSTEMD_INVOCATION_ID={before['InvocationID']}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return said if "EngineDeadError" in said or "died unexpectedly" in said else ""

    until(ended, "what it says of its engine's end")
    until(lambda: vllm.properties(lives)["InvocationID"] not in ("", before["InvocationID"]), "another run", 60)
    assert gone([*processes])
    said = [event["Message"] for event in vllm.json("events", lives) if event["Kind"] == "ended"]
    assert said == ["the server ended by itself; systemd starts it again"]  # which is how status 0 is told


def test_nothing_outlives_the_main_process(vllm: Vllm, lives: str) -> None:
    """EngineCore and workers that stay would keep the GPU (vllm#55510)."""
    found = vllm.wait(lives)
    assert found["State"] == "ready"
    processes = vllm.processes(lives)
    assert len(processes) >= 4
    os.kill(found["MainPID"], signal.SIGKILL)
    until(lambda: gone([*processes]), "the end of its workers", 60)
    vllm.run("stop", lives)
    assert not list(Path("/dev/shm").glob("psm_*"))


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--extra-args", "--no-such-flag"), 2, "unrecognized arguments: --no-such-flag"),
        (("--max-model-len", "100000"), 1, "is greater than the derived max_model_len"),
        (("--quantization", "awq"), 1, "quantization"),
        (("--extra-args", "--kv-cache-memory-bytes 1000"), 1, "cache"),
        (("--env", "VLLM_CPU_KVCACHE_SPACE=900000"), 1, "Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE"),
    ],
    ids=["flag", "length", "quantization", "no-cache", "large-cache"],
)
def test_a_start_that_fails(
    request: pytest.FixtureRequest, vllm: Vllm, arguments: tuple[str, ...], status: int, says: str
) -> None:
    name = request.node.callspec.id
    vllm.register(name, "--set", "Restart=no", *arguments)
    assert vllm.start(name)["State"] == "failed"
    said = vllm.journal(name)
    assert says in said
    assert f"code=exited, status={status}/" in said
    vllm.run("unregister", name)
