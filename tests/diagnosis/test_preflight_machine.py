"""What the machine is asked: GPUs, folders, programs, the hub. Each with a stand-in that lies, hangs or floods."""

from __future__ import annotations

import asyncio
import resource
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web

from cortexd.backends import BACKENDS, backend_of
from cortexd.bounded import in_thread
from cortexd.diagnosis import hub, machine
from cortexd.diagnosis.executable import Versions, surroundings
from cortexd.diagnosis.hub import Access
from cortexd.diagnosis.machine import Gpus
from cortexd.model import build_spec
from cortexd.scope import user_scope
from tests.support.wait import until


def make(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_machine_without_gpus(tmp_path: Path) -> None:
    assert machine.gpus(tmp_path) == Gpus(0)


def test_nvidias_nodes_count(tmp_path: Path) -> None:
    """In a container the driver shows more than may be opened."""
    for number in range(4):
        text = f"Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-0000000{number}-1111-2222-3333-444444444444\nDevice Minor: {number}\n"
        make(tmp_path, f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information", text)
    for node in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        make(tmp_path, f"dev/{node}")
    found = machine.gpus(tmp_path)
    assert (found.count, len(found.identifiers), found.identifiers[0][:12]) == (2, 4, "GPU-00000000")


def test_amd_and_others(tmp_path: Path) -> None:
    make(tmp_path, "sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 16\nsimd_count 0\n")
    assert machine.gpus(tmp_path) == Gpus(0)
    make(tmp_path, "dev/dri/renderD128")
    assert machine.gpus(tmp_path) == Gpus(None)
    make(tmp_path, "sys/class/kfd/kfd/topology/nodes/1/properties", "simd_count 304\n")
    assert machine.gpus(tmp_path) == Gpus(1)


def test_folders(tmp_path: Path) -> None:
    fresh = machine.folder(tmp_path / "a" / "b")
    assert fresh.obstacle is None and fresh.free is not None and fresh.free > 0
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "inner").mkdir()
    closed.chmod(0o500)
    assert machine.folder(closed).obstacle == closed
    assert machine.folder(closed / "new").obstacle == closed
    closed.chmod(0)
    assert machine.folder(closed / "inner" / "new").obstacle is not None
    closed.chmod(0o700)
    (tmp_path / "file").touch()
    assert machine.folder(tmp_path / "file").obstacle == tmp_path / "file"
    assert machine.folder(tmp_path / "file" / "below").obstacle == tmp_path / "file"


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def test_a_program_that_works_is_asked_once(tmp_path: Path) -> None:
    program = script(tmp_path / "p", f"echo >>{tmp_path}/asked")
    versions = Versions()
    for _ in range(3):
        assert versions.ask([program], ENVIRONMENT, 10).status == 0
    assert (tmp_path / "asked").read_text() == "\n"
    script(tmp_path / "p", f"echo >>{tmp_path}/asked; exit 0")  # another file now
    assert versions.ask([program], ENVIRONMENT, 10).status == 0
    assert (tmp_path / "asked").read_text() == "\n\n"


def test_one_that_runs_in_one_environment_is_asked_in_another(tmp_path: Path) -> None:
    program = script(tmp_path / "p", "exit ${STATUS:-0}")
    versions = Versions()
    assert versions.ask([program], ENVIRONMENT, 10).status == 0
    assert versions.ask([program], ENVIRONMENT | {"STATUS": "3"}, 10).status == 3


def test_a_daemon_with_many_descriptors_asks_too(tmp_path: Path) -> None:
    """One for each process of a running model, and more: select() takes none above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while stack.enter_context(Path("/dev/null").open()).fileno() < 1100:
            pass
        found = Versions().ask([script(tmp_path / "p", "echo said >&2; exit 3")], ENVIRONMENT, 10)
    assert (found.status, found.said) == (3, "said")


def test_one_that_fails_is_asked_again(tmp_path: Path) -> None:
    program = script(
        tmp_path / "p", f"[ -e {tmp_path}/repaired ] || {{ echo; echo ' no \x1b library' >&2; exit 127; }}"
    )
    versions = Versions()
    found = versions.ask([program], ENVIRONMENT, 10)
    assert (found.status, found.said) == (127, "no \x1b library")
    (tmp_path / "repaired").touch()
    assert versions.ask([program], ENVIRONMENT, 10).status == 0


def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    program = script(tmp_path / "p", f"sleep 1000 & echo $! >{tmp_path}/child; sleep 1000")
    versions = Versions()
    assert versions.ask([program], ENVIRONMENT, 0.5).status is None
    child = int((tmp_path / "child").read_text())
    until(lambda: not running(child), "the end of its child")
    began = time.monotonic()
    assert versions.ask([program], ENVIRONMENT, 0.5).status is None
    assert time.monotonic() - began < 0.4  # it is known to be slow; only who is patient asks again
    (tmp_path / "child").unlink()
    assert versions.ask([program], ENVIRONMENT, 0.5, patient=True).status is None
    assert (tmp_path / "child").exists()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_that_floods_ends_all_the_same(tmp_path: Path) -> None:
    program = script(tmp_path / "p", "echo first >&2; head -c 5000000 /dev/zero >&2; exit 3")
    found = Versions().ask([program], ENVIRONMENT, 20)
    assert (found.status, found.said) == (3, "first")


def test_one_that_leaves_its_output_to_a_child(tmp_path: Path) -> None:
    program = script(tmp_path / "p", "setsid sleep 5 & exit 0")
    began = time.monotonic()
    assert Versions().ask([program], ENVIRONMENT, 20).status == 0
    assert time.monotonic() - began < 4


def test_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "p").chmod(0o755)
    assert Versions().ask([str(tmp_path / "p")], ENVIRONMENT, 5).status == 126
    with pytest.raises(FileNotFoundError):
        Versions().ask([str(tmp_path / "gone")], ENVIRONMENT, 5)


def test_what_a_program_is_told(tmp_path: Path) -> None:
    program = script(tmp_path / "p", f"env >{tmp_path}/env; cat; [ -t 0 ] && exit 1; exit 0")
    own = {"HOME": "/h", "PATH": "/usr/bin:/bin", "HF_TOKEN": "hf_secret", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/x"}
    assert Versions().ask([program], surroundings({"CUDA_VISIBLE_DEVICES": "0"}, own), 10).status == 0
    told = (tmp_path / "env").read_text()
    assert "CUDA_VISIBLE_DEVICES=0" in told and "HOME=/h" in told
    assert "hf_secret" not in told and "DBUS" not in told


async def test_a_thread_that_hangs_holds_nobody() -> None:
    gate = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            await in_thread(0.05, gate.wait)
        assert await in_thread(5, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(5, lambda: 1 // 0)
        hanging = [asyncio.create_task(in_thread(5, gate.wait)) for _ in range(40)]
        done, _ = await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
        assert all(isinstance(task.exception(), TimeoutError) for task in done)  # no thread without end
    finally:
        gate.set()
    await asyncio.gather(*hanging, return_exceptions=True)


Answer = Callable[[web.Request], web.StreamResponse]


class FakeHub:
    """Answers as the test says; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers: dict[str, Answer] = {}
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, request.headers.get("Authorization", "")))
        if request.path not in self.answers:
            return web.json_response({"error": "Repository not found"}, status=401)
        return self.answers[request.path](request)


@pytest.fixture
async def fake_hub() -> AsyncIterator[FakeHub]:
    fake = FakeHub()
    app = web.Application()
    app.router.add_get("/{path:.*}", fake.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


def says(value: object, status: int = 200) -> Answer:
    return lambda _: web.json_response(value, status=status)


API = "/api/models/org/name"


@pytest.mark.parametrize(("answer", "access"), [
    (says({"gated": False}), Access.OPEN), (says({"gated": "manual"}), Access.GATED), (says({"gated": "auto"}), Access.GATED),
    (says({}, 404), Access.UNKNOWN), (says({}, 401), Access.UNKNOWN), (says({}, 503), Access.NO_ANSWER), (says({}, 429), Access.NO_ANSWER),
    (says([]), Access.NO_ANSWER), (lambda _: web.Response(body=b"[" * 500_000), Access.NO_ANSWER),
    (lambda _: web.Response(body=b" " * (2 << 20)), Access.NO_ANSWER), (lambda _: web.Response(body=b"\xff"), Access.NO_ANSWER),
])  # fmt: skip
async def test_what_the_hub_says(fake_hub: FakeHub, answer: Answer, access: Access) -> None:
    fake_hub.answers[API] = answer
    assert await hub.ask("org/name", fake_hub.url + "/", "", 5) is access
    assert fake_hub.asked == [(API, "")]


async def test_a_gated_one_is_asked_for_with_the_token(fake_hub: FakeHub) -> None:
    fake_hub.answers[API] = says({"gated": "manual"})
    fake_hub.answers[API + "/auth-check"] = says({}, 403)
    assert await hub.ask("org/name", fake_hub.url, "hf_x", 5) is Access.REFUSED
    fake_hub.answers[API + "/auth-check"] = says({})
    assert await hub.ask("org/name", fake_hub.url, "hf_x", 5) is Access.OPEN
    assert {token for _, token in fake_hub.asked} == {"Bearer hf_x"}


async def test_a_renamed_one_and_a_token_that_goes_nowhere_else(fake_hub: FakeHub) -> None:
    def moved(to: str) -> Answer:
        return lambda _: web.Response(status=307, headers={"Location": to})

    fake_hub.answers[API] = moved("/api/models/org/new")
    fake_hub.answers["/api/models/org/new"] = says({"gated": False})
    assert await hub.ask("org/name", fake_hub.url, "hf_x", 5) is Access.OPEN
    port = fake_hub.url.rpartition(":")[2]
    fake_hub.asked.clear()
    fake_hub.answers[API] = moved(f"http://localhost:{port}/api/models/org/new")
    assert await hub.ask("org/name", fake_hub.url, "hf_x", 5) is Access.NO_ANSWER
    fake_hub.answers[API] = moved(API)
    assert await hub.ask("org/name", fake_hub.url, "hf_x", 5) is Access.NO_ANSWER
    assert {path for path, _ in fake_hub.asked} == {API}


async def test_no_answer_is_none_and_takes_no_longer_than_allowed() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    began = time.monotonic()
    assert await hub.ask("org/name", f"http://127.0.0.1:{port}", "", 0.2) is Access.NO_ANSWER
    assert time.monotonic() - began < 2
    server.close()
    assert await hub.ask("org/name", f"http://127.0.0.1:{port}", "", 2) is Access.NO_ANSWER
    assert await hub.ask("org/name", "nonsense://", "", 2) is Access.NO_ANSWER


def test_what_is_in_the_cache(tmp_path: Path) -> None:
    environment = {"HF_HUB_CACHE": str(tmp_path)}
    assert not hub.is_cached("org/name", environment)
    (tmp_path / "models--org--name" / "snapshots" / "abc").mkdir(parents=True)
    assert not hub.is_cached("org/name", environment)  # a download that began
    (tmp_path / "models--org--name" / "snapshots" / "abc" / "config.json").touch()
    assert hub.is_cached("org/name", environment)
    assert not hub.is_cached("org/other", environment)
    llama = {"LLAMA_CACHE": str(tmp_path)}
    assert not hub.is_cached("org/other", llama)
    (tmp_path / "org_other_model-q4.gguf").touch()
    assert hub.is_cached("org/other", llama)
    assert not hub.is_cached("org/name", {"LLAMA_CACHE": str(tmp_path / "gone")})


def test_whose_token(tmp_path: Path) -> None:
    assert hub.saved_token({}, {}, tmp_path) == ""
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text("hf_home\n")
    assert hub.saved_token({}, {}, tmp_path) == "hf_home"
    (tmp_path / "token").write_text("hf_elsewhere")
    assert hub.saved_token({}, {"HF_HOME": str(tmp_path)}, tmp_path) == "hf_elsewhere"
    assert hub.saved_token({"HF_TOKEN": "hf_variable"}, {}, tmp_path) == "hf_variable"


@pytest.mark.parametrize(("path", "name"), [
    ("org/name", "org/name"), ("org/name:Q4_K_M", "org/name"), ("name", None), ("a/b/c", None), ("../x", None), ("hf.co/a/b", None),
])  # fmt: skip
def test_references(path: str, name: str | None) -> None:
    assert hub.repository(path) == name


def test_each_backend_knows_how_to_ask_its_program() -> None:
    def command(backend: str, program: str) -> tuple[str, ...]:
        spec = build_spec("m", {"path": "org/name", "exec": program, "backend": backend}, BACKENDS[backend].defaults(0))
        return BACKENDS[backend].version_command(spec)

    for backend in BACKENDS:
        assert command(backend, "/bin/server") == ("/bin/server", "--version")
    asked = command("vllm", "/venv/bin/python3.11")
    assert asked[:2] == ("/venv/bin/python3.11", "-c")
    found = Versions().ask([sys.executable, *asked[1:]], ENVIRONMENT, 20)
    assert (found.status, found.said) == (1, "No module named vllm")
    there = [sys.executable, "-c", asked[2].replace("'vllm'", "'json'")]
    assert Versions().ask(there, ENVIRONMENT, 20).status == 0


def test_a_program_of_a_backend_file_is_not_asked_but_a_python_for_its_package() -> None:
    scope = user_scope({"HOME": "/h"})
    backend = backend_of("whisper", scope)
    spec = build_spec("m", {"path": "/m.bin", "exec": "/v/whisper-server", "backend": "whisper"}, backend.defaults(0))
    assert backend.version_command(spec) == ()
    backend = backend_of("sglang", scope)
    spec = build_spec("m", {"path": "org/name", "exec": "/v/python", "backend": "sglang"}, backend.defaults(0))
    assert backend.version_command(spec)[:2] == ("/v/python", "-c")
