"""The waiter as a unit runs it."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cortexd import waiter
from cortexd.waiter.http import Server, http_status
from cortexd.waiter.sockets import listeners
from tests.support.units import free_port, make_program, systemctl
from tests.support.wait import until
from tests.waiter.servers import LOADING, OK, Notified, Wait, listening, saying, tcp_server


def test_standard_library_only() -> None:
    imported: set[str] = set()
    files = [*Path(waiter.__file__).parent.glob("*.py")]
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(str(node.module))
    ours = {name for name in imported if f"{name}.".startswith("cortexd.waiter.")}
    assert ours and {name.partition(".")[0] for name in imported - ours} <= sys.stdlib_module_names


def test_what_lies_beside_it_takes_no_modules_place(tmp_path: Path) -> None:
    """As in site-packages, where anybody's modules are; nor does the rest of cortexd run."""
    package = tmp_path / "cortexd" / "waiter"
    shutil.copytree(Path(waiter.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "argparse",
        "socket",
        "json",
        "hashlib",
        "http",
        "sitecustomize",
        "cortexd/__init__",
        "cortexd/socket",
    ):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(78)")
    command = [sys.executable, "-I", "-S", str(package / "__main__.py")]
    rest = ["--pid", "gone", "--address", "127.0.0.1", "--port", "1", "--path", "/", "--timeout", "1", "--stall", "1"]
    for folder in (tmp_path, package):
        done = subprocess.run([*command, *rest], cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "<3>Not ready: the server ended at once\n")


def test_the_ways_to_run_it(tmp_path: Path) -> None:
    """By a link, by a relative path, and as a module where cortexd is installed."""
    link = tmp_path / "wait"
    link.symlink_to(Path(waiter.__file__).parent)
    for command, folder in (([f"{link}/__main__.py"], tmp_path), (["wait/__main__.py"], tmp_path),
                            (["-m", "cortexd.waiter"], Path(waiter.__file__).parents[2])):  # fmt: skip
        done = subprocess.run(
            [sys.executable, *command, "--help"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and "--stall" in done.stdout, done.stderr


def test_a_server_that_needs_time(wait: Wait) -> None:
    answer = [LOADING]
    with tcp_server(lambda connection, _: connection.sendall(answer[0])) as server:
        wait.start(server.port)
        assert wait.notified.next() == "STATUS=Waiting for the server: /health answers 503"
        assert wait.process is not None and wait.process.poll() is None
        answer[0] = OK
        assert wait.end() == (0, "")
    assert wait.notified.rest() == ["STATUS=Ready"]


def test_a_port_that_opens_later(wait: Wait) -> None:
    port = free_port()
    wait.start(port)
    assert wait.notified.next() == "STATUS=Waiting for the server: /health: Connection refused"
    with listening("127.0.0.1", port=port) as (server,):
        connection, _ = server.accept()
        connection.sendall(OK)
        connection.close()
        assert wait.end() == (0, "")


def test_the_main_process_dies_while_it_loads(wait: Wait) -> None:
    with tcp_server(saying(LOADING)) as server:
        wait.start(server.port)
        wait.notified.next()
        begin = time.monotonic()
        wait.kill_main()
        reason = "the server ended while it started (/health answers 503)"
        assert wait.end() == (1, f"<3>Not ready: {reason}\n")
        assert time.monotonic() - begin < 1
    assert wait.notified.rest() == [f"STATUS=Not ready: {reason}"]


def test_the_main_process_becomes_a_zombie_while_it_loads(wait: Wait) -> None:
    """Nobody has to reap it first."""
    wait.start(free_port())
    wait.notified.next()
    wait.main.kill()
    assert wait.end()[0] == 1


@pytest.mark.parametrize("pid", ["", "gone"])
def test_the_main_process_was_never_seen(wait: Wait, pid: str) -> None:
    if pid:
        pid = str(wait.main.pid)
        wait.kill_main()
    wait.start(free_port(), pid=pid)
    assert wait.end() == (1, "<3>Not ready: the server ended at once\n")
    assert wait.notified.rest() == ["STATUS=Not ready: the server ended at once"]


def test_the_time_is_up(wait: Wait) -> None:
    wait.start(free_port(), timeout=0.2)
    status, said = wait.end()
    assert (status, said) == (1, "<3>Not ready: not ready after 0.2 s (/health: Connection refused)\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_it_clean(wait: Wait, number: int) -> None:
    wait.start(free_port())
    wait.notified.next()
    assert wait.process is not None
    wait.process.send_signal(number)
    assert wait.end() == (0, "")


def test_a_stop_while_a_probe_hangs(wait: Wait) -> None:
    with listening("127.0.0.1") as (server,):
        wait.start(server.getsockname()[1])
        connection, _ = server.accept()
        assert wait.process is not None
        wait.process.terminate()
        assert wait.end() == (0, "")
        connection.close()


def test_a_stranger_on_the_port(wait: Wait, tmp_path: Path) -> None:
    """A healthy server of another control group is none of ours, whoever runs it."""
    unit, port = f"stranger-{os.getpid()}.service", free_port()
    program = make_program(tmp_path / "stranger")
    subprocess.run(["systemd-run", "--user", "--quiet", f"--unit={unit}", str(program), f"--port={port}"], check=True)
    try:
        until(lambda: listeners(port), "the stranger's socket")
        assert http_status(Server("127.0.0.1", port), "/", 5) == 200
        wait.start(port)
        status, said = wait.end()
        assert status == 1
        assert f"port {port} is held by a process outside this unit (user {os.getuid()}, socket " in said
    finally:
        systemctl("stop", unit)


def test_the_models_environment_does_not_matter(wait: Wait, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(77)")
    (tmp_path / "argparse.py").write_text("import os; os._exit(78)")
    hostile = {
        "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent", "PYTHONWARNINGS": "error", "PYTHONSTARTUP": "/x",
        "LD_LIBRARY_PATH": str(tmp_path), "http_proxy": "http://127.0.0.1:1", "PYTHONDEBUG": "1",
    }  # fmt: skip
    crashed = subprocess.run([sys.executable, "-c", ""], env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False)
    assert crashed.returncode == 77  # or this test would show nothing
    with tcp_server(saying(OK)) as server:
        wait.start(server.port, environment=hostile)
        assert wait.end() == (0, "")


def test_without_a_notify_socket(wait: Wait) -> None:
    wait.notified.address = ""
    with tcp_server(saying(OK)) as server:
        wait.start(server.port)
        assert wait.end() == (0, "")


def test_an_abstract_notify_socket(wait_command: str) -> None:
    wait = Wait(wait_command.replace("@RUNTIME@/", "/nonexistent/"), Notified(f"@cortex-waiter-test-{os.getpid()}"))
    with tcp_server(saying(OK)) as server:
        wait.start(server.port)
        assert wait.end() == (0, "")
    assert wait.notified.rest() == ["STATUS=Ready"]
    wait.close()


def test_a_notify_socket_that_is_gone(wait: Wait) -> None:
    Path(wait.notified.address).unlink()
    with tcp_server(saying(OK)) as server:
        wait.start(server.port)
        assert wait.end() == (0, "")
