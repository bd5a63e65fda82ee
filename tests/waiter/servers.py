"""Servers that misbehave, a socket as systemd's, and the waiter as a process of its own."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cortexd.waiter.http import Server, http_status
from tests.support import unit_text

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LOADING = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


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
        return http_status(Server(self.address, self.port), "/health", timeout)


@contextmanager
def tcp_server(talk: Callable[[socket.socket, bytes], None], address: str = "127.0.0.1") -> Iterator[TcpServer]:
    server = TcpServer(talk, address)
    try:
        yield server
    finally:
        server.close()


def saying(answer: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, _: connection.sendall(answer)


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
        self, port: int, *more: str, timeout: float = 20, stall: float = 20, pid: str | None = None,
        environment: Mapping[str, str] = {},
    ) -> None:  # fmt: skip
        command = self.command.replace("@PORT@", str(port)).replace("@TIMEOUT@", f"{timeout:g}")
        command = command.replace("@STALL@", f"{stall:g}")
        variables = {"NOTIFY_SOCKET": self.notified.address, "MAINPID": str(self.main.pid) if pid is None else pid}
        argv = [*unit_text.expanded_argv(command, **variables), *more]
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
