"""Loading a model into Ollama: against the stand-in's API, and against answers that it would never give."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cortexd.waiter.http import Server
from cortexd.waiter.ollama import load
from cortexd.waiter.signs import Reading
from cortexd.waiter.watch import GaveUp, Watch
from tests.support.servers.ollama import Handler
from tests.support.servers.ollama_models import FOREVER, Ollama, Store
from tests.waiter.servers import Wait, saying, tcp_server


class StandIn:
    """The stand-in's API in this process, and what it was asked."""

    def __init__(self, folder: Path, script: dict[str, Any]) -> None:
        store = Store(folder / "models")
        for part in ("blobs", "manifests"):
            (store.folder / part).mkdir(parents=True)
        self.ollama = Ollama(store, script, 4096, FOREVER, 1)
        self.asked: list[str] = []
        self.modelfiles: dict[str, str] = {}
        self.embeds = False
        outer = self

        class Recorder(Handler):
            ollama = outer.ollama

            def log_message(self, format: str, *args: object) -> None:
                outer.asked.append(f"{self.command} {self.path}")

            def show(self, request: dict[str, Any]) -> None:
                name = request["model"]
                if name in outer.modelfiles:
                    self.answer(200, {"modelfile": outer.modelfiles[name]})
                else:
                    super().show(request)

            def generate(self, request: dict[str, Any]) -> None:
                if outer.embeds and self.path == "/api/generate":
                    self.answer(400, {"error": f'"{request["model"]}" does not support generate'})
                else:
                    assert request["keep_alive"] == -1
                    super().generate(request)

            def do_POST(self) -> None:
                if self.path == "/api/embed" and outer.embeds:
                    self.generate(json.loads(self.body()))
                else:
                    super().do_POST()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
        self.http.daemon_threads = False  # so that the end waits for what they begin
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        for gate in (self.ollama.script.get("pull_gate"), self.ollama.script.get("load_gate")):
            with contextlib.suppress(OSError):  # nobody waits there
                os.close(os.open(gate or "", os.O_WRONLY | os.O_NONBLOCK))
        self.http.server_close()
        for name in [*self.ollama.loaded]:
            self.ollama.unload(name)

    def has(self, model: str) -> bool:
        return self.ollama.store.find(model) is not None


@contextmanager
def stand_in(folder: Path, **script: Any) -> Iterator[StandIn]:
    server = StandIn(folder, script)
    try:
        yield server
    finally:
        server.close()


def poll(seconds: float, fd: int, events: int) -> tuple[bool, bool]:
    """A main process that never ends."""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, events)
    return False, bool(poll.poll(seconds * 1000))


def have_loaded(port: int, model: str, file: Path | None = None, **times: float) -> list[str]:
    """Load; what was said on the way. GaveUp passes through."""
    said: list[str] = []
    watch = Watch(poll, lambda now: Reading(now), said.append, **{"timeout": 20, "stall": 20, **times})
    doing = watch.doing

    def note(what: str, last: str = "") -> None:
        said.append(what)
        doing(what, last)

    watch.doing = note  # type: ignore[method-assign]
    load(watch, Server("127.0.0.1", port), model, file)
    return [line for line in said if "=" not in line]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "a model.gguf"
    file.write_bytes(b"GGUF" + os.urandom(3 << 20))
    return file


# -------------------------------------------------------------------------------------------------------------- tags


def test_a_model_that_is_there_is_loaded_and_kept(tmp_path: Path) -> None:
    with stand_in(tmp_path, registry={"llama3:8b": 1000}) as server:
        have_loaded(server.port, "llama3:8b")
        server.asked.clear()
        for name in [*server.ollama.loaded]:
            server.ollama.unload(name)
        assert have_loaded(server.port, "llama3:8b") == ["Loading llama3:8b"]
        assert server.asked == ["POST /api/show", "POST /api/generate", "GET /api/ps"]
        ((name, model),) = server.ollama.running().items()
        assert str(name) == "llama3:8b" and model.expires.year > 2100


def test_a_model_that_is_missing_is_pulled(tmp_path: Path) -> None:
    with stand_in(tmp_path, registry={"llama3:8b": 1000}) as server:
        said = have_loaded(server.port, "llama3:8b")
        assert said == [
            "Pulling llama3:8b", "Pulling llama3:8b: 0 %", "Pulling llama3:8b: 50 %", "Pulling llama3:8b: 100 %",
            "Loading llama3:8b",
        ]  # fmt: skip
        assert server.has("llama3:8b")


@pytest.mark.parametrize(
    "name",
    ["llama3", "LLAMA3", "library/llama3:latest", "registry.ollama.ai/library/llama3", "hf.co/me/it-GGUF:Q4_K_M"],
)
def test_names_as_people_write_them(tmp_path: Path, name: str) -> None:
    """/api/ps writes them in its own way."""
    with stand_in(tmp_path, registry={"llama3": 10, "LLAMA3": 10, "hf.co/me/it-GGUF:Q4_K_M": 10}) as server:
        have_loaded(server.port, name)
        assert len(server.ollama.running()) == 1


def test_a_model_for_embeddings(tmp_path: Path) -> None:
    with stand_in(tmp_path, registry={"all-minilm": 10}) as server:
        server.embeds = True
        have_loaded(server.port, "all-minilm")
        assert server.asked[-3:] == ["POST /api/generate", "POST /api/embed", "GET /api/ps"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({}, "Ollama cannot pull llama3:8b: pull model manifest: file does not exist"),
        (
            {"pull_error": "max retries exceeded: \x1b[31mno route\nto host" + "!" * 1000},
            "Ollama cannot pull llama3:8b: max retries exceeded:  [31mno route to host!!!",
        ),
        (
            {
                "registry": {"llama3:8b": 10},
                "load_error": "model requires more system memory (9 GiB) than is available",
            },
            "Ollama cannot load llama3:8b: model requires more system memory (9 GiB) than is available",
        ),
    ],
)
def test_what_ollama_says_is_the_reason(tmp_path: Path, script: dict[str, Any], reason: str) -> None:
    with stand_in(tmp_path, **script) as server:
        with pytest.raises(GaveUp) as caught:
            have_loaded(server.port, "llama3:8b")
        assert str(caught.value).startswith(reason) and len(str(caught.value)) < 400


# -------------------------------------------------------------------------------------------------------------- files


def test_a_model_is_made_of_a_file(tmp_path: Path, gguf: Path) -> None:
    with stand_in(tmp_path) as server:
        said = have_loaded(server.port, "cortex/mine", gguf)
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        assert [line for line in said if "%" not in line] == [
            "Making cortex/mine of a model.gguf",
            "Loading cortex/mine",
        ]
        assert said[:4] == [f"Reading a model.gguf: {share} %" for share in (33, 66, 99, 100)]
        assert said[4:8] == [f"Copying a model.gguf: {share} %" for share in (33, 66, 99, 100)]
        found = server.ollama.store.find("cortex/mine")
        assert found and found[1]["layers"][0]["digest"] == f"sha256:{digest}"
        assert (server.ollama.store.folder / "blobs" / f"sha256-{digest}").read_bytes() == gguf.read_bytes()


def test_a_file_that_ollama_has_is_not_copied_again(tmp_path: Path, gguf: Path) -> None:
    with stand_in(tmp_path) as server:
        server.ollama.store.add_blob(gguf.read_bytes())
        have_loaded(server.port, "cortex/mine", gguf)
        assert not [asked for asked in server.asked if asked.startswith("POST /api/blobs")]
        assert "POST /api/create" in server.asked


def test_a_model_that_was_made_of_this_file_is_not_made_again(tmp_path: Path, gguf: Path) -> None:
    with stand_in(tmp_path) as server:
        have_loaded(server.port, "cortex/mine", gguf)
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        server.modelfiles["cortex/mine"] = f"# Modelfile\nFROM /x/.ollama/models/blobs/sha256-{digest}\nTEMPLATE x\n"
        server.asked.clear()
        have_loaded(server.port, "cortex/mine", gguf)
        assert server.asked == ["POST /api/show", "POST /api/generate", "GET /api/ps"]


def test_a_file_that_was_changed_makes_the_model_anew(tmp_path: Path, gguf: Path) -> None:
    with stand_in(tmp_path) as server:
        have_loaded(server.port, "cortex/mine", gguf)
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        server.modelfiles["cortex/mine"] = f"FROM /x/.ollama/models/blobs/sha256-{digest}\n"
        gguf.write_bytes(b"GGUF other")
        have_loaded(server.port, "cortex/mine", gguf)
        found = server.ollama.store.find("cortex/mine")
        assert found and found[1]["layers"][0]["digest"] == f"sha256:{hashlib.sha256(b'GGUF other').hexdigest()}"


def test_a_file_that_ollama_cannot_use(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"no such thing")
    with (
        stand_in(tmp_path) as server,
        pytest.raises(GaveUp, match=r"Ollama cannot make cortex/m of .*m\.gguf: unknown type"),
    ):
        have_loaded(server.port, "cortex/m", file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with stand_in(tmp_path) as server, pytest.raises(GaveUp, match=r"gone\.gguf cannot be read: No such file"):
        have_loaded(server.port, "cortex/m", tmp_path / "gone.gguf")


# --------------------------------------------------------------------------------------------- what it would never say


def answering(**answers: bytes) -> Callable[[socket.socket, bytes], None]:
    """A server with an answer for each of the API's paths; `show` says that there is no such model."""
    answers = {"show": b"404", **answers}

    def talk(connection: socket.socket, request: bytes) -> None:
        answer = answers[request.split()[1].decode().rpartition("/")[2]]
        status, _, body = answer.partition(b" ")
        connection.sendall(b"HTTP/1.1 %s X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    return talk


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"pull": b"200 "}, "Ollama cannot pull m: its answer ends after ''"),
        ({"pull": b'200 {"status":"pulling"}'}, "Ollama cannot pull m: its answer ends after 'pulling'"),
        ({"pull": b"200 " + b"x" * 200_000}, "Ollama does not answer as it should: the answer has a line without end"),
        ({"pull": b"200 [" * 10_000}, "Ollama does not answer as it should: no JSON object"),
        ({"pull": b"200 nonsense"}, "Ollama does not answer as it should: no JSON object"),
        ({"pull": b"500 nonsense"}, "Ollama cannot pull m: it answers 500"),
        ({"pull": b'200 {"error": {"a": 1}}'}, "Ollama cannot pull m: {'a': 1}"),
        ({"show": b"500 "}, "Ollama cannot show m: it answers 500"),
        ({"show": b"200 []"}, "Ollama does not answer as it should: no JSON object"),
        ({"show": b"200 {}", "generate": b"404 "}, "Ollama cannot load m: it answers 404"),
        (
            {"show": b"200 {}", "generate": b"200 ", "ps": b"200 x"},
            "Ollama does not answer as it should: no JSON object",
        ),
    ],
)
def test_odd_answers(answers: dict[str, bytes], reason: str) -> None:
    with tcp_server(answering(**answers)) as server, pytest.raises(GaveUp) as caught:
        have_loaded(server.port, "m")
    assert str(caught.value) == reason


@pytest.mark.parametrize("count", [b"-5", b'"many"', b"null", b"1e400", b"[]"])
def test_odd_counts(count: bytes) -> None:
    lines = b'200 {"status":"a","digest":"d","total":%s,"completed":%s}\n{"status":"success"}' % (count, count)
    answers = {"pull": lines, "generate": b"200 {}", "ps": b'200 {"models":[7,{"name":"m:latest"}]}'}
    with tcp_server(answering(**answers)) as server:
        assert have_loaded(server.port, "m") == ["Pulling m", "Loading m"]


def test_a_pull_that_repeats_itself_is_a_stall() -> None:
    """Ollama says where it is 16 times a second, whether anything comes or not."""
    line = b'{"status":"pulling x","digest":"d","total":100,"completed":50}\n'

    def talk(connection: socket.socket, request: bytes) -> None:
        if b"/api/show" in request:
            saying(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")(connection, request)
            return
        connection.sendall(b"HTTP/1.1 200 X\r\n\r\n")
        while not server.stop.wait(0.02):
            connection.sendall(line)

    with tcp_server(talk) as server, pytest.raises(GaveUp, match=r"no sign of progress for 0\.4 s \(Pulling m: 50 %\)"):
        have_loaded(server.port, "m", stall=0.4)


def test_the_server_goes_away_in_the_middle() -> None:
    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b'HTTP/1.1 200 X\r\nContent-Length: 5000\r\n\r\n{"modelfile":')

    with (
        tcp_server(talk) as server,
        pytest.raises(GaveUp, match=r"does not answer as it should: (the answer ends too early|Connection reset)"),
    ):
        have_loaded(server.port, "m")


# --------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize("gate", ["pull_gate", "load_gate"])
@pytest.mark.parametrize("how", ["stop", "end"])
def test_a_stop_or_an_end_in_the_middle(wait: Wait, tmp_path: Path, gate: str, how: str) -> None:
    """The answer hangs; the waiter ends at once all the same."""
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    with stand_in(tmp_path, registry={"llama3:8b": 1000}, **{gate: str(fifo)}) as server:
        wait.start(server.port, "--path", "/api/tags", "--load", "ollama", "--model", "llama3:8b")
        what = "Pulling llama3:8b: 50 %" if gate == "pull_gate" else "Loading llama3:8b"
        while what not in (said := wait.notified.next()):
            assert "Ready" not in said
        assert wait.process is not None and wait.process.poll() is None
        if how == "stop":
            wait.process.send_signal(signal.SIGTERM)
            assert wait.end() == (0, "")
        else:
            wait.kill_main()
            assert wait.end() == (1, f"<3>Not ready: the server ended while it started ({what})\n")
        fifo.write_text("open")


def test_ready_is_when_it_is_loaded(wait: Wait, tmp_path: Path, gguf: Path) -> None:
    with stand_in(tmp_path) as server:
        wait.start(server.port, "--path", "/api/tags", "--load", "ollama", "--model", "cortex/x", "--from", str(gguf))
        assert wait.end() == (0, "")
        assert len(server.ollama.running()) == 1
    assert wait.notified.rest()[-1] == "STATUS=Ready"
