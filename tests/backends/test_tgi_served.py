"""TGI from end to end: the real daemon and systemd, and the stand-in, which takes no argument that the real one would not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
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

CACHE = Path.home() / ".cache" / "huggingface"
TOLD = CACHE / "told.json"
ONE = {"inputs": "a", "parameters": {"max_new_tokens": 1}}


@pytest.fixture
def cortex(shared_daemon: Daemon) -> Iterator[Cortex]:
    """The command line on a daemon that all tests here share."""
    TOLD.unlink(missing_ok=True)
    client = Cortex()
    yield client
    client.run("unregister", "--force", "*", check=False)


def register(cortex: Cortex, tgi: StandIn, name: str, *more: str) -> Client:
    """Register a model of it and return who asks its server."""
    cortex.run(
        "register", name, "--backend", "tgi", "--path", "org/name", "--exec", str(tgi.program), "--port", "auto",
        "--memory", "1G", "--set", "RestartSec=0", *more,
    )  # fmt: skip
    return Client(cortex.out("url", name).strip())


def told() -> dict[str, Any]:
    """What the launcher saw of its start."""
    found = json.loads(TOLD.read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture
def strays() -> Iterator[None]:
    """Variables of other programs' in the manager's environment, each of them an option of TGI's."""
    names = {
        "PORT": "1",
        "HOSTNAME": "elsewhere",
        "MODEL_ID": "other/model",
        "QUANTIZE": "nonsense",
        "API_KEY": "a stranger's",
    }
    systemctl("set-environment", *(f"{name}={value}" for name, value in names.items()))
    yield
    systemctl("unset-environment", *names)


def test_a_model_that_two_gpus_share(cortex: Cortex, tgi: StandIn, gate: Gate, strays: None) -> None:
    tgi.script(gate=str(gate), tell=str(TOLD))
    client = register(cortex, tgi, "t", "--gpus", "0,1", "--tensor-parallel", "2", "--quantization", "awq")
    cortex.run("start", "--no-block", "t")
    assert cortex.properties("t")["State"] == "starting"
    gate.open()
    cortex.until_state("t", "ready")

    seen, port = told(), client.url.rpartition(":")[2]
    flags = dict(zip(seen["argv"][1::2], seen["argv"][2::2], strict=True))
    assert flags.items() >= {
        "--model-id": "org/name", "--hostname": "127.0.0.1", "--port": port, "--num-shard": "2", "--quantize": "awq",
        "--max-input-tokens": "4095", "--max-total-tokens": "4096", "--cuda-memory-fraction": "0.9",
    }.items()  # fmt: skip
    assert seen["environ"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert not {"PORT", "HOSTNAME", "MODEL_ID", "QUANTIZE", "API_KEY"} & set(seen["environ"])
    assert client.ask("/generate", ONE)[0] == 200  # no stranger's key

    cortex.run("stop", "t")
    assert properties("cortex-t.service", "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0",
    }  # fmt: skip
    assert not [pid for pid in seen["shards"] if Path(f"/proc/{pid}").exists()]


def test_two_launchers_run_side_by_side(cortex: Cortex, tgi: StandIn) -> None:
    clients = [register(cortex, tgi, name) for name in ("one", "two")]
    cortex.run("start", "one", "two")
    assert [client.ask("/info")[0] for client in clients] == [200, 200]


def test_a_secret_wins_over_what_the_manager_has(cortex: Cortex, tgi: StandIn, strays: None) -> None:
    client = register(cortex, tgi, "keyed")
    stored = subprocess.run(
        [sys.executable, "-m", "cortexctl", "secret", "set", "keyed", "API_KEY"],
        input="k3y\n",
        text=True,
        capture_output=True,
        timeout=30,
    )
    assert stored.returncode == 0, stored.stderr
    cortex.run("start", "keyed")
    assert client.ask("/generate", ONE)[0] == 401
    assert client.ask("/generate", ONE, key="a stranger's")[0] == 401
    assert client.ask("/generate", ONE, key="k3y")[0] == 200


def test_a_launcher_whose_shard_died_is_started_again(cortex: Cortex, tgi: StandIn, gate: Gate) -> None:
    tgi.script(dying_gate=str(gate), tell=str(TOLD))
    client = register(cortex, tgi, "crash")
    cortex.run("start", "crash")
    first = told()
    os.kill(first["shards"][0], signal.SIGKILL)
    answer = until(lambda: (a := client.ask("/health"))[0] != 200 and a, "a bad health")
    assert answer == (503, [{"error": "unhealthy", "error_type": "healthcheck"}])
    gate.open()
    until(lambda: told()["pid"] != first["pid"], "another launcher")
    cortex.until_state("crash", "ready")
    assert properties("cortex-crash.service", "NRestarts") == {"NRestarts": "1"}


def test_a_stop_lets_a_request_in_flight_end(cortex: Cortex, tgi: StandIn, gate: Gate) -> None:
    tgi.script(generate_gate=str(gate))
    client = register(cortex, tgi, "busy")
    cortex.run("start", "busy")
    answers: list[int] = []
    request = threading.Thread(target=lambda: answers.append(client.ask("/generate", ONE)[0]))
    request.start()
    until(lambda: 'tgi_batch_inference_count{method="decode"} 1' in str(client.ask("/metrics")[1]), "the request")
    cortex.run("stop", "--no-block", "busy")
    assert properties("cortex-busy.service", "TimeoutStopUSec") == {"TimeoutStopUSec": "3min 10s"}
    until(lambda: properties("cortex-busy.service", "SubState")["SubState"] == "stop-sigterm", "the stop")
    gate.open()
    request.join()
    assert answers == [200]
    cortex.until_state("busy", "stopped")


def test_an_argument_that_it_does_not_know(cortex: Cortex, tgi: StandIn) -> None:
    register(cortex, tgi, "wrong", "--extra-args", "--max-modle-len 5", "--set", "Restart=no")
    cortex.fails("start", "wrong")
    assert properties("cortex-wrong.service", "ExecMainStatus") == {"ExecMainStatus": "2"}
    until(lambda: "unexpected argument '--max-modle-len' found" in cortex.out("logs", "wrong"), "its words in the log")
