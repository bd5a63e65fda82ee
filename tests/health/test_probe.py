"""What a probe makes of servers of every kind: each a named outcome, within bounds of time and bytes."""

from __future__ import annotations

import asyncio
import gzip
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cortexd.backends import backend_of
from cortexd.health.policy import Outcome
from cortexd.health.probe import Prober, Questions, Server
from cortexd.scope import user_scope
from tests.health.servers import Talk, says, server
from tests.support.wait import aio_until


@pytest.fixture
def prober() -> Prober:
    return Prober()


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Outcome.OK, ""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Outcome.OK, ""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", Outcome.OK, ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Outcome.OK, ""),
        # What it says is nobody's business: neither too much of it nor nonsense in it.
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", Outcome.OK, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(1 << 22)), Outcome.OK, ""),
        (b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n", Outcome.SERVER_ERROR, "the endpoint answers 503"),
        (b"HTTP/1.1 500 Dead\r\n\r\n", Outcome.SERVER_ERROR, "the endpoint answers 500"),
        (b"HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 401"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 404"),
        (b"HTTP/1.1 302 Found\r\nLocation: /ok\r\n\r\n", Outcome.REDIRECT, "the endpoint answers 302"),
        (b"HTTP/1.1 307 T\r\nLocation: http://example.org/\r\n\r\n", Outcome.REDIRECT, "the endpoint answers 307"),
        (b"", Outcome.BROKEN, "the answer ends too early"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Outcome.BROKEN, "the answer is no HTTP"),
        (b"\0\xff\r\n\r\n" * 10, Outcome.BROKEN, "the answer "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", Outcome.BROKEN, "the answer "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok", Outcome.BROKEN, "the answer "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Outcome.BROKEN, "the answer "),
        (
            b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
            Outcome.TOO_LONG,
            "the answer's headers are too long",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65_537, Outcome.TOO_LONG, "the answer is longer than 64 KiB"),
    ],
)
async def test_what_a_server_says(prober: Prober, answer: bytes, outcome: Outcome, reason: str) -> None:
    async with server(says(answer)) as found:
        probe = await prober.probe(found, 10)
    assert (probe.outcome, probe.ok) == (outcome, outcome is Outcome.OK), probe.reason
    assert probe.reason.startswith(reason) and (not reason) == (not probe.reason)
    assert 0 < probe.latency < 10


async def test_a_redirect_is_not_followed(prober: Prober) -> None:
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    async with server(talk) as found:
        assert not (await prober.probe(found, 10)).ok
    assert asked == [b"GET /health HTTP/1.1\r\n"]


async def test_nothing_of_ours_is_told_or_kept(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cookie comes back, no proxy is used, and each probe has a connection of its own."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    requests: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        requests.append(await reader.read(100))  # a kept connection would hang here

    async with server(talk) as found:
        for _ in range(2):
            assert (await prober.probe(found, 10)).ok
        await aio_until(lambda: len(requests) == 4, "both ends")
    assert [r for r in requests if not r] == [b"", b""]
    assert b"Cookie" not in b"".join(requests)


async def test_nobody_listens(prober: Prober) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        probe = await prober.probe(Server(f"http://127.0.0.1:{sock.getsockname()[1]}", "/health"), 10)
    assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: Connection refused")


@pytest.mark.parametrize("url", ["http://[::1/", "http://256.1.1.1:80/x", "http://127.0.0.1:99999/", "ftp://a/", "/x"])
async def test_a_url_that_is_none_is_an_outcome(prober: Prober, url: str) -> None:
    probe = await prober.probe(Server("", url), 10)
    assert not probe.ok and probe.reason


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _drip_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10**6):
        writer.write(b"A%d: b\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.02)


async def _continue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("talk", [_drip_headers, _continue, _silent, says(b"HTTP/1.1 200 OK\r\n", then_wait=True)])
async def test_a_server_that_never_begins_its_answer(prober: Prober, talk: Talk) -> None:
    async with server(talk) as found:
        probe = await prober.probe(found, 0.3)
    assert (probe.outcome, probe.reason) == (Outcome.TIMEOUT, "no answer within 0.3 s")
    assert probe.timed_out and 0.25 < probe.latency < 5


@pytest.mark.parametrize("talk", [_drip, says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", then_wait=True)])
async def test_a_server_that_never_ends_its_answer(prober: Prober, talk: Talk) -> None:
    async with server(talk) as found:
        probe = await prober.probe(found, 0.3)
    assert (probe.outcome, probe.reason) == (Outcome.UNFINISHED, "the answer does not end within 0.3 s")
    assert probe.timed_out and 0.25 < probe.latency < 5


async def test_an_endless_body_is_not_read_to_its_end(prober: Prober) -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with server(talk) as found:
        probe = await prober.probe(found, 10)
    assert probe.outcome is Outcome.TOO_LONG
    assert sent < 32 << 20


ANSWERS = {
    "llamacpp": b'{"status":"ok"}',
    "vllm": b"",
    "tgi": b"",
    "ollama": b'{"models":[{"name":"a"}]}',
}


@pytest.mark.parametrize("backend", ANSWERS)
async def test_a_body_that_is_not_what_the_backend_promises(prober: Prober, backend: str) -> None:
    questions = Questions(backend_of(backend, user_scope({"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/a"})).healthy)
    for of, body in {**ANSWERS, "a proxy": b"<html>Welcome to nginx!</html>"}.items():
        async with server(
            says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)), questions
        ) as found:
            probe = await prober.probe(found, 10)
        assert probe.ok == (body == ANSWERS[backend]), (of, probe)
        assert probe.ok or (probe.outcome, probe.timed_out) == (Outcome.WRONG, False)


async def test_the_key_is_sent_and_never_shown(prober: Prober) -> None:
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with server(talk) as found:
        secret = replace(found, token="s3cret")
        assert (await prober.probe(secret, 10)).ok and (await prober.probe(found, 10)).ok
    assert [b"\r\nAuthorization: Bearer s3cret\r\n" in request for request in asked] == [True, False]
    assert "s3cret" not in repr(secret)


async def test_a_unix_socket(prober: Prober, tmp_path: Path) -> None:
    """Whatever is at its path: a server, nobody, a file, one that is too busy to accept."""
    path, asked = tmp_path / "a.sock", list[bytes]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    there = Server(f"unix:{path}", "/health", token="s3cret")
    probe = await prober.probe(there, 10)
    assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: No such file or directory")
    async with await asyncio.start_unix_server(talk, path):
        assert (await prober.probe(there, 10)).ok
    assert asked[0].startswith(b"GET /health HTTP/1.1\r\nHost: localhost\r\n") and b"Bearer s3cret\r\n" in asked[0]
    probe = await prober.probe(there, 10)  # what it left
    assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: Connection refused")
    path.unlink()
    path.write_text("a file")
    assert (await prober.probe(there, 10)).outcome is Outcome.REFUSED
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        probe = await prober.probe(there, 10)
        assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: Protocol wrong type for socket")
    path.unlink()
    path.symlink_to(path)
    probe = await prober.probe(there, 10)
    assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: Too many levels of symbolic links")
    path.unlink()
    probe = await prober.probe(replace(there, url=f"unix:{tmp_path}/{'x' * 120}"), 10)
    assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: AF_UNIX path too long")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(path))
        full.listen(0)
        first.connect(str(path))
        late = asyncio.create_task(prober.probe(there, 10))
        probe = await prober.probe(there, 0.2)
        assert (probe.outcome, probe.reason, probe.timed_out) == (Outcome.TIMEOUT, "no answer within 0.2 s", True)
        full.accept()[0].close()
        accepted = await asyncio.to_thread(lambda: full.accept()[0])  # it tries again
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert (await late).ok
        accepted.close()


async def test_a_stranger_is_asked_nothing(prober: Prober) -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\n\r\n")) as found:
        probe = await prober.probe(replace(found, stranger="port 1 is somebody else's"), 10)
    assert (probe.outcome, probe.reason, probe.timed_out) == (Outcome.STRANGER, "port 1 is somebody else's", False)


async def test_a_key_that_no_header_can_hold_is_an_outcome(prober: Prober) -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\n\r\n")) as found:
        assert (await prober.probe(replace(found, token="a\r\nb: c"), 10)).outcome is Outcome.BROKEN
