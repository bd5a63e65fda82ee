"""What llama.cpp's launch plan relies on, shown on a real llama-server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS, LaunchPlan
from cortexd.backends.llamacpp_variables import VARIABLES
from tests.backends.plans import plan_of
from tests.support.units import free_port
from tests.support.wait import until

KEY = "k3y"


@dataclass
class Server:
    """A running one."""

    port: int
    plan: LaunchPlan
    process: subprocess.Popen[bytes]

    def ask(self, path: str, body: str | None = None, *, key: str = "") -> tuple[int, str]:
        """Status and body of a GET, or of a POST."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body.encode() if body else None)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def counted(self, *, key: str = "") -> dict[str, float]:
        """The activity counters."""
        assert self.plan.activity is not None
        status, text = self.ask(self.plan.activity.path, key=key)
        assert status == 200
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(found[name]) for name in self.plan.activity.counters}


@contextmanager
def serving(llama_server: Path, model: Path, environment: dict[str, str]) -> Iterator[Server]:
    port = free_port()
    plan = plan_of("llamacpp", path=str(model), exec=str(llama_server), port=port, gpus=(), max_model_len=65536)
    variables = {"PATH": os.environ["PATH"], **plan.environment, **environment}
    process = subprocess.Popen(plan.argv, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(port, plan, process)
    try:
        until(lambda: server.ask("/health")[0] == 200 or process.poll() is not None, "a llama-server")
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def keyed(llama_server: Path, tiny_gguf: Path) -> Iterator[Server]:
    """One with a key."""
    variable = plan_of("llamacpp").api_key
    with serving(llama_server, tiny_gguf, {variable: KEY}) as server:
        yield server


def test_its_health_stays_open_and_nothing_else_does(keyed: Server) -> None:
    status, body = keyed.ask("/health")
    assert status == 200 and re.fullmatch(BACKENDS["llamacpp"].healthy, body)
    assert keyed.plan.activity is not None and keyed.plan.engine is not None
    for path, data in ((keyed.plan.activity.path, None), (keyed.plan.engine.path, keyed.plan.engine.body)):
        assert keyed.ask(path, data)[0] == 401
        assert keyed.ask(path, data, key=KEY)[0] == 200


def test_the_engine_probe_generates_one_token_every_time(keyed: Server) -> None:
    engine = keyed.plan.engine
    assert engine is not None
    for _ in range(2):
        before = keyed.counted(key=KEY)
        status, body = keyed.ask(engine.path, engine.body, key=KEY)
        assert status == 200 and json.loads(body)["tokens_predicted"] == 1
        after = keyed.counted(key=KEY)
        assert after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"] == 1
        assert after["llamacpp:prompt_tokens_total"] > before["llamacpp:prompt_tokens_total"]


def test_a_long_completion_shows_in_the_counters_while_it_lasts(keyed: Server) -> None:
    """Tokens are counted at its end alone, so without n_decode_total it would look like a hang."""
    start = keyed.counted(key=KEY)
    body = json.dumps({"prompt": "a", "n_predict": 20000, "ignore_eos": True})
    answers: list[tuple[int, str]] = []
    request = threading.Thread(target=lambda: answers.append(keyed.ask("/completion", body, key=KEY)))
    request.start()
    try:

        def grown() -> bool:
            now = keyed.counted(key=KEY)
            # Both hold only between the first step and the end.
            return (
                now["llamacpp:n_decode_total"] > start["llamacpp:n_decode_total"]
                and now["llamacpp:tokens_predicted_total"] == start["llamacpp:tokens_predicted_total"]
                and not answers
            )

        until(grown, "progress in the middle of a completion")
    finally:
        request.join()


def test_no_documented_variable_of_an_option_that_we_give_or_refuse_is_missed(llama_server: Path) -> None:
    shown = subprocess.run([llama_server, "--help"], capture_output=True, text=True, timeout=60).stdout
    ours = {*BACKENDS["llamacpp"].owned, "--alias", "--n-gpu-layers", "--split-mode", "--tensor-split", "--metrics"}
    seen = set()
    for entry in re.split(r"\n(?=-)", shown):
        options = re.match(r"(?:-[\w-]+,?\s+)*", entry)
        flags = set(options[0].replace(",", " ").split()) if options else set()
        variable = re.search(r"\(env: (LLAMA_ARG_\w+)\)", entry)
        if flags & ours and variable:
            seen.add(variable[1])
    assert len(seen) >= 12 and seen <= set(VARIABLES), seen - set(VARIABLES)
    documented = set(re.findall(r"LLAMA_ARG_\w+", shown))
    assert len(documented & set(VARIABLES)) > 100
