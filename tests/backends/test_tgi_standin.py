"""TGI's stand-in against its documentation: what the tests of the daemon rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.conftest import Gate
from tests.support.standins import StandIn
from tests.support.units import free_port
from tests.support.wait import until


@dataclass
class Running:
    """A launcher that was started."""

    process: subprocess.Popen[str]
    command: list[str]
    port: int

    def ask(self, path: str, body: object = None, *, key: str = "") -> tuple[int, str]:
        """Status and body."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""


def command(program: StandIn, port: int, folder: Path, *more: str) -> list[str]:
    """As cortexd writes it, more or less."""
    return [
        str(program.program), "--model-id", "org/name", "--hostname", "127.0.0.1", "--port", str(port), "--num-shard", "1",
        "--prometheus-port", str(free_port()), "--master-port", str(free_port()), "--shard-uds-path", str(folder / "shard"), *more,
    ]  # fmt: skip


@contextmanager
def started(program: StandIn, folder: Path, *more: str, **variables: str) -> Iterator[Running]:
    """A launcher of its own; it may not be ready."""
    port = free_port()
    environment = {"PATH": f"{program.program.parent}:{os.environ['PATH']}", **variables}
    line = command(program, port, folder, *more)
    running = Running(subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True), line, port)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.communicate(timeout=20)


def ended(running: Running, status: int) -> str:
    """Its last words; it has to end with this status."""
    _, said = running.process.communicate(timeout=20)
    assert running.process.returncode == status, said
    return said


def ready(running: Running) -> None:
    """Wait for it."""
    until(lambda: running.ask("/health")[0] == 200 or running.process.poll() is not None, "the stand-in")
    assert running.process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--alias", "x"], 2, "unexpected argument '--alias' found"),
        (["--max-total", "5"], 2, "unexpected argument '--max-total' found"),
        (["--quantize", "torchao"], 2, "invalid value 'torchao' for '--quantize"),
        (["--port", "many"], 2, "invalid int value: 'many'"),
        (
            ["--max-input-tokens", "5", "--max-total-tokens", "5"],
            1,
            "`max_input_tokens`(5) must be < `max_total_tokens`(5)",
        ),
        (["--num-shard", "2"], 1, "NotEnoughCUDADevices"),
        (["--num-shard", "0"], 1, "`num_shard` cannot be < 1"),
        (["--model-id", "/absent/model"], 1, "DownloadError"),
    ],
)
def test_what_it_refuses(tgi: StandIn, tmp_path: Path, arguments: list[str], status: int, says: str) -> None:
    with started(tgi, tmp_path, *arguments, CUDA_VISIBLE_DEVICES="0") as launcher:
        assert says in ended(launcher, status)


def test_it_needs_its_two_programs(tgi: StandIn, tmp_path: Path) -> None:
    with started(tgi, tmp_path, PATH="/usr/bin:/bin") as launcher:
        assert "text-generation-server not found in PATH" in ended(launcher, 1)


def test_bare_variables_are_options(tgi: StandIn, tmp_path: Path) -> None:
    with started(tgi, tmp_path, API_KEY="k3y", PORT="1") as launcher:
        ready(launcher)  # the command line wins over PORT
        assert launcher.ask("/generate", {"inputs": "a"})[0] == 401
    with started(tgi, tmp_path, QUANTIZE="nonsense") as launcher:
        assert "invalid value 'nonsense' for '--quantize" in ended(launcher, 2)


def test_nothing_listens_before_the_shards_are_up(tgi: StandIn, tmp_path: Path, gate: Gate) -> None:
    tgi.script(gate=str(gate))
    with started(tgi, tmp_path) as launcher:
        until(lambda: (tmp_path / "shard-0").exists(), "a shard")
        assert launcher.ask("/health") == (0, "")
        gate.open()
        ready(launcher)
        assert launcher.ask("/health") == (200, "")
        assert json.loads(launcher.ask("/info")[1])["model_id"] == "org/name"


def test_a_key_is_asked_for_where_something_is_generated(tgi: StandIn, tmp_path: Path) -> None:
    one = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    with started(tgi, tmp_path, API_KEY="k3y") as launcher:
        ready(launcher)
        assert launcher.ask("/generate", one)[0] == 401
        assert launcher.ask("/generate", one, key="k3y") == (200, '{"generated_text": "a"}')
        assert launcher.ask("/health")[0] == launcher.ask("/metrics")[0] == 200
        assert launcher.ask("/generate", {"inputs": ""}, key="k3y")[0] == 422
        assert launcher.ask("/generate", {"prompt": "a"}, key="k3y")[0] == 422
        assert "tgi_request_success 1\n" in launcher.ask("/metrics")[1]


def test_a_dead_shard_is_unhealthy_and_then_the_end(tgi: StandIn, tmp_path: Path, gate: Gate) -> None:
    tgi.script(dying_gate=str(gate), tell=str(tmp_path / "told"))
    with started(tgi, tmp_path) as launcher:
        ready(launcher)
        (shard,) = json.loads((tmp_path / "told").read_text())["shards"]
        os.kill(shard, signal.SIGKILL)
        answer = until(lambda: (a := launcher.ask("/health"))[0] != 200 and a, "a bad health")
        assert answer == (503, '{"error": "unhealthy", "error_type": "healthcheck"}')
        gate.open()
        assert "ShardFailed" in ended(launcher, 1)


def test_two_instances_collide_unless_each_has_ports_of_its_own(tgi: StandIn, tmp_path: Path) -> None:
    with started(tgi, tmp_path) as first:
        ready(first)
        prometheus = first.command[first.command.index("--prometheus-port") + 1]
        with started(tgi, tmp_path, "--prometheus-port", prometheus) as second:
            assert f"port {prometheus}: Address already in use" in ended(second, 1)
        assert first.ask("/health")[0] == 200
