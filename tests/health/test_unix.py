"""A real llama-server on a Unix socket: reached, watched, restarted, and refused where somebody else is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cortexd.secrets import Secrets
from cortexd.waiter.http import Exchange, Server
from tests.support.cortex import Cortex
from tests.support.units import properties, systemctl
from tests.support.wait import until

QUICK = ["--set", "health.interval_seconds=1", "--set", "health.timeout_seconds=1", "--set", "health.max_failures=2",
         "--set", "RestartSec=0.2", "--set", "health.probe=engine"]  # fmt: skip
UNIT = "cortex-local.service"


def asked(path: Path, what: str, key: str = "") -> int:
    with Exchange(Server(str(path)), timeout=10) as exchange:
        return exchange.ask("GET", what, key=key)


def run_of(unit: str) -> str:
    return properties(unit, "InvocationID")["InvocationID"]


def test_a_server_on_a_unix_socket(cortex: Cortex) -> None:
    path = Path(os.environ["XDG_RUNTIME_DIR"], "models", "local", "api.sock")
    cortex.register_tiny("local", "--host", f"unix:{path}", "--api-key", "auto", *QUICK)
    assert cortex.properties("local")["URL"] == f"unix:{path}"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        said = cortex.fails("start", "local")
        assert f"{path} is held by process {os.getpid()} (" in said
    assert path.is_socket()  # a socket that is left behind is in nobody's way
    cortex.run("start", "local")
    key = Secrets(Path.home() / ".cortex" / "secrets").value("local", "LLAMA_API_KEY")
    assert key and (asked(path, "/metrics"), asked(path, "/metrics", key), asked(path, "/health")) == (401, 200, 200)
    assert cortex.out("url", "local") == f"unix:{path}\n"
    assert f"curl --unix-socket {path} http://localhost/" in cortex.run("status", "local", check=False).stdout
    (began,) = [event["Message"] for event in cortex.json("events", "local") if event["Kind"] == "run"]
    assert began.startswith("run begins (process ")
    found = cortex.json("health", "local")[0]
    assert (found["Outcome"], found["Endpoint"]) == ("ok", f"--unix-socket {path} http://localhost/health")

    for signal in ("KILL", "STOP"):
        run = run_of(UNIT)
        systemctl("kill", f"--signal={signal}", UNIT)
        until(lambda run=run: run_of(UNIT) != run, "the next run", 40)  # type: ignore[misc]
        cortex.until_state("local", "ready")
        assert asked(path, "/health") == 200
    dead = [event for event in cortex.json("events", "local") if event["Kind"] == "health-restart"]
    assert len(dead) == 1 and "the last: no answer within 1 s" in dead[0]["Message"]


def test_one_that_another_process_took_over_is_sent_no_key(cortex: Cortex) -> None:
    """The path is what clients know; whose process answers there is asked of the kernel."""
    path = Path.home() / "sockets" / "api.sock"
    cortex.register_tiny("local", "--host", str(path), "--api-key", "auto", *QUICK, "--set", "Restart=no")
    cortex.run("start", "local")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        until(lambda: cortex.properties("local")["HealthFailures"] >= 2, "failures", 30)
        reason = cortex.properties("local")["HealthReason"]
        assert reason == f"{path} is held by a process outside its unit (user {os.getuid()})"
        stranger.setblocking(False)
        heard = b""
        for _ in range(100):
            try:
                connection, _ = stranger.accept()
            except BlockingIOError:
                break
            heard += connection.recv(4096)
            connection.close()
        assert heard == b""  # who it is was asked, and no more
