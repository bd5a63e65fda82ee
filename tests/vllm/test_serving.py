"""What a ready vLLM shows: every option of `register` in it, its key, its counters, and where it writes."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortexd.backends import BACKENDS
from cortexd.health.activity import total
from cortexd.model import build_spec
from cortexd.scope import user_scope
from tests.support.wait import until
from tests.vllm.conftest import VLLM, Vllm

PLAN = BACKENDS["vllm"].plan(
    build_spec("served", {"path": "org/name", "exec": "/opt/vllm"}, BACKENDS["vllm"].defaults(0)),
    user_scope({"HOME": "/h"}),
)


class Server:
    """Asks a running server, with its key or without."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def ask(self, path: str, body: str = "", *, key: bool = True) -> tuple[int, bytes]:
        """Status and answer of a GET, or of a POST with a JSON body."""
        request = urllib.request.Request(self.url + path, data=body.encode() or None)
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read()

    def work(self) -> float:
        """What our counters of it come to."""
        assert PLAN.activity is not None
        done = total(self.ask(PLAN.activity.path, key=False)[1], PLAN.activity.counters)
        assert done is not None
        return done

    def generate(self, tokens: int) -> dict[str, Any]:
        """A completion of exactly so many tokens."""
        status, answer = self.ask(
            "/v1/completions",
            json.dumps({"prompt": "abc", "max_tokens": tokens, "ignore_eos": True, "model": "served"}),
        )
        assert status == 200, answer
        return dict(json.loads(answer))


@pytest.fixture(scope="module")
def served(vllm: Vllm) -> Iterator[dict[str, Any]]:
    """The properties of a model that is ready."""
    vllm.register(
        "served", "--api-key", "auto", "--max-model-len", "16384", "--port", "8101", "--extra-args", "--seed 7"
    )
    found = vllm.start("served")
    assert found["State"] == "ready", vllm.journal("served")[-5000:]
    yield found
    vllm.run("unregister", "--force", "served")


@pytest.fixture(scope="module")
def server(served: dict[str, Any], vllm: Vllm) -> Server:
    """The way to ask it."""
    secrets = (Path.home() / ".cortex" / "secrets" / "served" / "environment").read_text()
    (key,) = [line.partition("=")[2].strip("\"'") for line in secrets.splitlines() if line.startswith("VLLM_API_KEY=")]
    return Server(vllm.out("url", "served").strip(), key)


def test_the_python_that_has_it_is_found_where_its_program_cannot_work(served: dict[str, Any]) -> None:
    assert served["Settings"]["exec"] == str(VLLM / "bin" / "python")


def test_every_option_of_register_reaches_it(served: dict[str, Any], server: Server, vllm: Vllm, model: Path) -> None:
    (said,) = [line for line in vllm.journal("served").splitlines() if "non-default args:" in line]
    for part in (
        "'host': '127.0.0.1'", f"'model': '{model}'", "'max_model_len': 16384", "'port': 8101",
        "'served_model_name': ['served']", f"'kv_cache_memory_bytes': {2 << 30}", "'seed': 7",
    ):  # fmt: skip
        assert part in said
    (listed,) = json.loads(server.ask("/v1/models")[1])["data"]
    assert (listed["id"], listed["max_model_len"]) == ("served", 16384)


def test_its_key_is_asked_of_clients_and_of_no_probe(server: Server, served: dict[str, Any], vllm: Vllm) -> None:
    for path in ("/health", "/metrics", "/version"):
        assert server.ask(path, key=False)[0] == 200, path
    assert server.ask("/v1/models", key=False)[0] == 401
    assert server.ask("/v1/models")[0] == 200
    command = Path(f"/proc/{served['MainPID']}/cmdline").read_bytes()
    assert server.key and server.key.encode() not in command
    assert server.key not in vllm.journal("served")


def test_engine_probe_generates_one_token(server: Server) -> None:
    assert PLAN.engine is not None and PLAN.engine.asleep is not None
    assert server.ask(PLAN.engine.asleep[0])[0] == 404  # no development mode: it cannot sleep
    before = server.work()
    status, answer = server.ask(PLAN.engine.path, PLAN.engine.body)
    assert status == 200 and json.loads(answer)["usage"]["completion_tokens"] == 1
    assert server.work() == before + 3  # a token of the prompt, one that is generated, a request


def test_counters_grow_while_it_generates(server: Server) -> None:
    before = server.work()
    answers: list[dict[str, Any]] = []
    client = threading.Thread(target=lambda: answers.append(server.generate(10000)))
    client.start()
    seen = []
    while client.is_alive():
        seen.append(server.work() - before)
    client.join()
    assert answers[0]["usage"]["completion_tokens"] == 10000
    assert len({work for work in seen if 0 < work < 10000}) >= 2, seen


def test_health_of_a_ready_server(server: Server, vllm: Vllm) -> None:
    assert server.ask("/health", key=False) == (200, b"")
    assert vllm.run("health", "served").returncode == 0


def test_workers_and_threads_fit_the_limit(served: dict[str, Any], vllm: Vllm) -> None:
    processes = vllm.processes("served")
    assert {"VLLM::EngineCor", "VLLM::Worker"} <= set(processes.values())
    threads = sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in processes)
    assert threads < 512 < served["Settings"]["TasksMax"]


def test_what_it_compiles_lies_in_its_cache(served: dict[str, Any]) -> None:
    assert list((Path.home() / ".cache" / "vllm" / "torch_compile_cache").rglob("*.so"))


def test_memory_that_it_shares_is_its_own(served: dict[str, Any]) -> None:
    assert list(Path(f"/proc/{served['MainPID']}/root/dev/shm").glob("psm_*"))
    assert not list(Path("/dev/shm").glob("psm_*"))


def test_stop_while_it_generates(server: Server, vllm: Vllm) -> None:
    """The last test of this server. A request in flight is given up: vLLM's own default."""
    clients = [threading.Thread(target=server.ask, args=("/v1/completions", LONG)) for _ in range(3)]
    before = server.work()
    for client in clients:
        client.start()
    until(lambda: server.work() > before + 10, "generation")
    done = vllm.run("stop", "served")
    for client in clients:
        client.join()
    assert done.stderr == ""
    found = vllm.properties("served")
    assert (found["State"], found["Result"]) == ("stopped", "success")
    left = subprocess.run(["pgrep", "VLLM"], capture_output=True, text=True, check=False).stdout
    assert left == ""


LONG = json.dumps({"prompt": "abc", "max_tokens": 15000, "ignore_eos": True})
