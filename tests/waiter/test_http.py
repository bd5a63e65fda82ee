"""The waiter's HTTP, against servers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from cortexd.waiter.http import Exchange, Server, http_answer, http_status, server_of
from tests.support.units import free_port
from tests.waiter.servers import LOADING, OK, saying, tcp_server


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
    with tcp_server(saying(answer)) as server, pytest.raises(OSError, match=r"no HTTP|ends too early|Connection reset"):
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


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with pytest.raises(FileNotFoundError):
        http_status(Server(path), "/", 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=lambda: requests.append(answer_one(listener, OK)))
        requests: list[bytes] = []
        thread.start()
        assert http_status(Server(path), "/health", 5) == 200
        thread.join()
    assert requests[0].startswith(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")


def answer_one(listener: socket.socket, answer: bytes) -> bytes:
    connection, _ = listener.accept()
    with connection:
        request = connection.recv(65536)
        connection.sendall(answer)
    return request


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://127.0.0.1:8000", Server("127.0.0.1", 8000)),
        ("http://[::1]:80", Server("::1", 80)),
        ("unix:/run/a.sock", Server("/run/a.sock")),
        ("http://localhost:80", None),  # nobody looks up a name here
        ("http://127.0.0.1:0", None),
        ("http://127.0.0.1:65536", None),
        ("http://127.0.0.1", None),
        ("unix:a.sock", None),
        ("", None),
    ],
)
def test_which_server_a_url_names(url: str, server: Server | None) -> None:
    if server:
        assert server_of(url) == server
    else:
        with pytest.raises(ValueError, match="no address"):
            server_of(url)


def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError):
        http_status(Server("127.0.0.1", port), "/", 1)


# ------------------------------------------------------------------------------------------------------------- bodies


def refusing(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 503 Busy", *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (refusing(b"12 %", "Content-Length: 4"), b"12 %"),
        (refusing(b"12 % and more", "content-length:  4 "), b"12 %"),
        (refusing(b"4\r\n12 %\r\n3\r\n...\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), b"12 %..."),
        (refusing(b"4;ext=1\r\n12 %\r\n0\r\nTrailer: x\r\n\r\n", "Transfer-Encoding: Chunked"), b"12 %"),
        (refusing(b"until it closes"), b"until it closes"),
        (refusing(b"x" * 10_000_000), b"x" * 4096),
        (refusing(b"", "Content-Length: 0"), b""),
        # What is malformed has told nothing.
        (refusing(b"abc", "Content-Length: 4"), b""),
        (refusing(b"abc", "Content-Length: many"), b""),
        (refusing(b"abc", "Content-Length: -1"), b""),
        (refusing(b"abc", "Content-Length: " + "9" * 5000), b""),
        (refusing(b"zz\r\nabc", "Transfer-Encoding: chunked"), b""),
        (refusing(b"4\r\nab", "Transfer-Encoding: chunked"), b""),
        (refusing(b"4" * 5000, "Transfer-Encoding: chunked"), b""),
        (refusing(b"abc", *["X: y"] * 100_000), b""),
    ],
    ids=lambda value: repr(value[:60]),
)
def test_what_a_refusal_says(answer: bytes, body: bytes) -> None:
    with tcp_server(saying(answer)) as server:
        assert http_answer(Server("127.0.0.1", server.port), "/health", 5) == (503, body)


def test_a_refusal_whose_body_never_comes_costs_a_moment() -> None:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(refusing(b"", "Content-Length: 5"))
        connection.recv(1)

    with tcp_server(talk) as server:
        begin = time.monotonic()
        assert http_answer(Server("127.0.0.1", server.port), "/health", 5) == (503, b"")
        assert time.monotonic() - begin < 2


def test_the_body_of_an_answer_that_says_ready_is_not_waited_for() -> None:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        connection.recv(1)

    with tcp_server(talk) as server:
        assert http_answer(Server("127.0.0.1", server.port), "/health", 5) == (200, b"")


def test_lines_come_as_they_are_sent() -> None:
    """Whatever pieces they come in."""
    lines = [b'{"a": 1}', b'{"b": 2}', b"last"]
    stream = b"\n".join(lines)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(stream[i : i + 3]), stream[i : i + 3]) for i in range(0, len(stream), 3))
    answer = refusing(chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked")
    with tcp_server(saying(answer)) as server, Exchange(Server("127.0.0.1", server.port), timeout=5) as exchange:
        exchange.ask("GET", "/")
        assert list(exchange.lines(100)) == lines


def test_a_line_without_end_is_an_error() -> None:
    answer = refusing(b"x" * 1_000_000)
    with tcp_server(saying(answer)) as server, Exchange(Server("127.0.0.1", server.port), timeout=5) as exchange:
        exchange.ask("GET", "/")
        with pytest.raises(OSError, match="without end"):
            list(exchange.lines(1000))


def test_what_the_pause_raises_ends_a_request() -> None:
    class Stop(Exception):
        pass

    def pause(seconds: float, fd: int, events: int) -> bool:
        raise Stop

    with tcp_server(saying(OK)) as server, pytest.raises(Stop):
        http_status(Server("127.0.0.1", server.port), "/", 5, pause)
