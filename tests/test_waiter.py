"""The waiter: its decisions on a fake clock, its HTTP against servers that misbehave, and the program as a unit runs it."""

from __future__ import annotations

import ast
import errno
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cortexd import waiter
from cortexd.scope import user_scope
from cortexd.units.tools import find_tools
from cortexd.waiter import Listener, Waiter, answers_to, http_status, listeners, own_cgroup
from tests.support import unit_text
from tests.support.units import free_port, generate, make_program, systemctl
from tests.support.wait import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LOADING = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


# ------------------------------------------------------------------------------------------------------------ decisions


class Script:
    """A wait without time: the clock moves by what is paused, and probes answer what the script says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, probe: Callable[[float], int | OSError]) -> None:
        self.time = 100.0
        self.pauses: list[float] = []
        self.said: list[str] = []
        self.probes = 0
        self.sockets: list[Listener] = []
        self.ends_at = float("inf")

        def ask(address: str, port: int, host: str, path: str, timeout: float) -> int:
            self.probes += 1
            found = probe(self.time - 100)
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(waiter, "http_status", ask)

    def main_gone(self, seconds: float) -> bool:
        """Pauses, as poll(2) on a pidfd does."""
        if seconds:
            self.pauses.append(seconds)
        self.time += seconds
        return self.time - 100 >= self.ends_at

    def run(self, timeout: float = 3600, cgroup: int = 0) -> str:
        return Waiter(
            address="127.0.0.1", port=8000, host="127.0.0.1:8000", path="/health", timeout=timeout, cgroup=cgroup,
            now=lambda: self.time, say=self.said.append, find=lambda port: self.sockets,
        ).run(self.main_gone)  # fmt: skip


def refused() -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_polls_every_50_ms_for_2_s_and_then_every_100(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, lambda t: refused())
    reason = script.run(timeout=5)
    assert reason == "not ready after 5 s (/health: Connection refused)"
    fast = script.pauses.count(0.05)
    assert script.pauses == [0.05] * fast + [0.1] * (len(script.pauses) - fast)
    assert 40 <= fast <= 41  # 2 s, give or take what adding floats up loses
    assert 30 <= len(script.pauses) - fast <= 31
    assert script.probes == len(script.pauses) + 1


def test_ready_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, lambda t: 200)
    assert script.run() == ""
    assert (script.pauses, script.probes, script.said) == ([], 1, ["Ready"])


@pytest.mark.parametrize(("status", "ready"), [(100, False), (200, True), (204, True), (299, True), (301, False),
                                               (302, False), (401, False), (404, False), (500, False), (503, False)])  # fmt: skip
def test_only_2xx_is_ready(monkeypatch: pytest.MonkeyPatch, status: int, ready: bool) -> None:
    script = Script(monkeypatch, lambda t: status)
    assert script.run(timeout=1) == ("" if ready else f"not ready after 1 s (/health answers {status})")


def test_tells_a_change_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, lambda t: refused() if t < 1 else 503 if t < 3 else 200)
    assert script.run() == ""
    assert script.said == [
        "Waiting for the server: /health: Connection refused",
        "Waiting for the server: /health answers 503",
        "Ready",
    ]


def test_ends_when_the_main_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, lambda t: 503)
    script.ends_at = 1.0
    assert script.run() == "the server ended while it started (/health answers 503)"
    assert script.time - 100 == pytest.approx(1.0, abs=0.06)


def test_an_answer_is_not_believed_when_the_main_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, lambda t: 200)
    script.ends_at = 0
    assert script.run() == "the server ended while it started"


def test_a_stranger_is_refused_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, lambda t: 200)
    script.sockets = [Listener("0.0.0.0", 8000, 1000, 4711, cgroup=8)]
    assert script.run(cgroup=7) == "port 8000 is held by a process outside this unit (user 1000, socket 4711)"
    assert script.probes == 0


def test_a_stranger_that_came_with_the_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: float) -> int:
        script.sockets = [Listener("127.0.0.1", 8000, 0, 1, cgroup=8)]
        return 200

    script = Script(monkeypatch, answer)
    assert "outside this unit" in script.run(cgroup=7)


@pytest.mark.parametrize(
    ("own", "listener", "strange"),
    [
        (7, Listener("127.0.0.1", 8000, 0, 1, cgroup=7), False),
        (7, Listener("127.0.0.1", 8000, 0, 1, cgroup=8), True),
        (7, Listener("::", 8000, 0, 1, cgroup=8), True),
        (7, Listener("127.0.0.1", 8000, 0, 1, cgroup=0), False),  # the kernel does not say
        (0, Listener("127.0.0.1", 8000, 0, 1, cgroup=8), False),  # nor whose we are
        (7, Listener("127.0.0.2", 8000, 0, 1, cgroup=8), False),
        (7, Listener("::1", 8000, 0, 1, cgroup=8), False),
    ],
)
def test_who_is_a_stranger(monkeypatch: pytest.MonkeyPatch, own: int, listener: Listener, strange: bool) -> None:
    script = Script(monkeypatch, lambda t: 200)
    script.sockets = [listener]
    assert bool(script.run(cgroup=own)) is strange


@pytest.mark.parametrize(
    ("probe", "address", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "::", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::ffff:0.0.0.0", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("::1", "::1", True),
        ("::1", "::", True),
        ("::1", "0.0.0.0", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_which_sockets_a_probe_reaches(probe: str, address: str, reached: bool) -> None:
    socket_ = Listener(address, 8000, 0, 1)
    assert answers_to(probe, [socket_]) == ([socket_] if reached else [])


# ----------------------------------------------------------------------------------------------------------------- HTTP


class TcpServer:
    """Accepts connections one by one and lets `talk` do with each what it likes."""

    def __init__(self, talk: Callable[[socket.socket, bytes], None], address: str = "127.0.0.1") -> None:
        self.talk, self.address, self.requests = talk, address, queue.Queue[bytes]()
        self.stop = threading.Event()
        self.listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                if self.stop.is_set():
                    return
                request = connection.recv(65536)
                self.requests.put(request)
                try:
                    self.talk(connection, request)
                except (BrokenPipeError, ConnectionResetError):
                    continue

    def close(self) -> None:
        self.stop.set()
        socket.create_connection((self.address, self.port)).close()
        self.thread.join()
        self.listener.close()

    def ask(self, timeout: float = 5) -> int:
        return http_status(self.address, self.port, f"{self.address}:{self.port}", "/health", timeout)


@contextmanager
def tcp_server(talk: Callable[[socket.socket, bytes], None], address: str = "127.0.0.1") -> Iterator[TcpServer]:
    server = TcpServer(talk, address)
    try:
        yield server
    finally:
        server.close()


def saying(answer: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, _: connection.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (OK, 200),
        (LOADING, 503),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 200\r\n\r\n", 200),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", 302),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, 200),
    ],
)
def test_status_line(answer: bytes, status: int) -> None:
    with tcp_server(saying(answer)) as server:
        assert server.ask() == status
        request = server.requests.get_nowait()
        assert server.requests.empty()  # a redirection is not followed
    assert request.startswith(b"GET /health HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{server.port}\r\n".encode() in request
    assert b"\r\nConnection: close\r\n" in request


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1\r\n",
        b"HTTP/1.1 OK 200\r\n",
        b"HTTP/1.1 20\r\n",
        b"HTTP/1.1 -200 OK\r\n",
        b"HTTP/1.1 " + b"2" * 5000 + b"\r\n",  # more digits than int() takes
        b"\0\xff" * 5000,
        b"x" * 1_000_000,
    ],
    ids=lambda answer: repr(answer[:24]),
)
def test_what_is_no_http(answer: bytes) -> None:
    with tcp_server(saying(answer)) as server, pytest.raises(OSError, match=r"no HTTP|Connection reset"):
        server.ask()


def test_an_endless_answer_is_cut_off() -> None:
    def talk(connection: socket.socket, _: bytes) -> None:
        while True:
            connection.sendall(b"x" * 65536)

    with tcp_server(talk) as server, pytest.raises(OSError, match="no HTTP"):
        server.ask()


def test_an_answer_in_pieces() -> None:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"HTTP/1.1 200 OK\r\n":
            connection.sendall(bytes([byte]))

    with tcp_server(talk) as server:
        assert server.ask() == 200


def test_drip_feeding_does_not_outlast_the_time_out() -> None:
    """Every byte comes in time, and the answer never."""

    def talk(connection: socket.socket, _: bytes) -> None:
        while not server.stop.wait(0.005):
            connection.sendall(b"H")

    with tcp_server(talk) as server:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            server.ask(timeout=0.3)
        assert 0.25 < time.monotonic() - begin < 1.5


def test_a_server_that_never_answers() -> None:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.recv(1)  # ends when the client goes away

    with tcp_server(talk) as server:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            server.ask(timeout=0.2)
        assert time.monotonic() - begin < 1.5


def test_ipv6() -> None:
    with tcp_server(saying(OK), "::1") as server:
        assert server.ask() == 200


def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError):
        http_status("127.0.0.1", port, "x", "/", 1)


# -------------------------------------------------------------------------------------------------------------- sockets


@contextmanager
def listening(*addresses: str, port: int = 0) -> Iterator[list[socket.socket]]:
    """Sockets on one port and several addresses."""
    sockets: list[socket.socket] = []
    for address in addresses:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.startswith("::ffff:"))
        sock.bind((address, port))
        sock.listen()
        sockets.append(sock)
    yield sockets
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["0.0.0.0"], ["::1"], ["::"], ["::ffff:127.0.0.1"], ["127.0.0.1", "127.0.0.2", "::1"]]
)
def test_netlink_and_proc_find_the_same(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with listening(*addresses, port=port) as sockets:
        by_netlink = listeners(port)

        def unavailable(family: int) -> Iterator[Listener]:
            raise PermissionError

        monkeypatch.setattr(waiter, "_diag", unavailable)
        by_proc = listeners(port)
        expected = {(s.getsockname()[0], port, os.getuid(), os.fstat(s.fileno()).st_ino) for s in sockets}

        def key(found: list[Listener]) -> set[tuple[str, int, int, int]]:
            return {(sock.address, sock.port, sock.uid, sock.inode) for sock in found}

        assert key(by_netlink) == key(by_proc) == expected
        assert {sock.cgroup for sock in by_netlink} == {own_cgroup()}
        assert {sock.cgroup for sock in by_proc} == {0}


def test_what_does_not_listen_is_not_found() -> None:
    port = free_port()
    with listening("127.0.0.1", port=port) as (server,), socket.create_connection(("127.0.0.1", port)):
        accepted, _ = server.accept()
        assert [sock.inode for sock in listeners(port)] == [os.fstat(server.fileno()).st_ino]
        accepted.close()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listeners(bound.getsockname()[1]) == []


def test_many_sockets() -> None:
    """More than one datagram of the kernel's answer holds."""
    with listening(*["127.0.0.1"] * 400) as sockets:
        last = sockets[-1].getsockname()[1]
        assert [sock.inode for sock in listeners(last)] == [os.fstat(sockets[-1].fileno()).st_ino]


def test_own_control_group() -> None:
    (path,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    assert own_cgroup() == Path(f"/sys/fs/cgroup{path}").stat().st_ino


def test_own_control_group_of_a_name_with_colons() -> None:
    unit, program = "cortex-waiter::test.service", "from cortexd.waiter import own_cgroup; print(own_cgroup())"
    command = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", f"--unit={unit}", "--property=PrivateUsers=yes",
               "--property=ProtectControlGroups=yes", f"--working-directory={Path(waiter.__file__).parents[1]}"]  # fmt: skip
    inside = f"{program}; import os; print(os.stat('/sys/fs/cgroup' + open('/proc/self/cgroup').read().split('0::')[1].strip()).st_ino)"
    printed = subprocess.run([*command, sys.executable, "-c", inside], capture_output=True, text=True, check=True)
    ours, real = printed.stdout.split()
    assert ours == real != "0"


# ---------------------------------------------------------------------------------------------------------- the program


def test_standard_library_only() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(waiter.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported and imported <= sys.stdlib_module_names


@pytest.fixture(scope="module")
def wait_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ExecStartPost= of a generated unit, with the port as @PORT@."""
    executable = make_program(tmp_path_factory.mktemp("bin") / "vllm")
    settings = {"path": "org/name", "exec": str(executable), "port": 4444}
    text = generate("waited-for", settings, scope=user_scope(os.environ), tools=find_tools()).text
    (command,) = unit_text.parse(text)["Service"]["ExecStartPost"]
    assert '"--port" "4444"' in command
    return command.replace('"4444"', '"@PORT@"').replace('"3600"', '"@TIMEOUT@"')


class Notified:
    """A socket as systemd's for sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.socket.settimeout(10)

    def next(self) -> str:
        return self.socket.recv(4096).decode()

    def rest(self) -> list[str]:
        """What has come so far."""
        self.socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found


class Wait:
    """The waiter as a process, for a main process that does nothing."""

    def __init__(self, command: str, notified: Notified) -> None:
        self.command, self.notified = command, notified
        self.main = subprocess.Popen(["sleep", "infinity"])
        self.process: subprocess.Popen[str] | None = None

    def start(
        self, port: int, *, timeout: float = 20, pid: str | None = None, environment: Mapping[str, str] = {}
    ) -> None:
        command = self.command.replace("@PORT@", str(port)).replace("@TIMEOUT@", f"{timeout:g}")
        variables = {"NOTIFY_SOCKET": self.notified.address, "MAINPID": str(self.main.pid) if pid is None else pid}
        argv = unit_text.expanded_argv(command, **variables)
        self.process = subprocess.Popen(
            argv, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables, **environment}
        )

    def end(self) -> tuple[int, str]:
        """Exit status and what it said, within a second or two."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=10)
        return self.process.returncode, said

    def kill_main(self) -> None:
        self.main.kill()
        self.main.wait()

    def close(self) -> None:
        self.kill_main()
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.notified.socket.close()


@pytest.fixture
def wait(wait_command: str, tmp_path: Path) -> Iterator[Wait]:
    wait = Wait(wait_command, Notified(str(tmp_path / "notify")))
    yield wait
    wait.close()


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
        assert wait.end() == (1, f"<3>{reason}\n")
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
    assert wait.end() == (1, "<3>the server ended at once\n")
    assert wait.notified.rest() == ["STATUS=Not ready: the server ended at once"]


def test_the_time_is_up(wait: Wait) -> None:
    wait.start(free_port(), timeout=0.2)
    status, said = wait.end()
    assert (status, said) == (1, "<3>not ready after 0.2 s (/health: Connection refused)\n")


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
        assert http_status("127.0.0.1", port, "x", "/", 5) == 200
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
    wait = Wait(wait_command, Notified(f"@cortex-waiter-test-{os.getpid()}"))
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
