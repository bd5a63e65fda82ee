"""The rules, one by one, and what a start makes of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cortexd.backends import BACKENDS
from cortexd.diagnosis import examiner, hub, modelfiles
from cortexd.diagnosis.examiner import from_error
from cortexd.diagnosis.executable import Version
from cortexd.diagnosis.finding import Finding, Level, error, plain, warning
from cortexd.diagnosis.hub import Access, Hub
from cortexd.diagnosis.machine import Folder, Gpus
from cortexd.diagnosis.modelfiles import Fault, Survey
from cortexd.diagnosis.preflight import Evidence, findings
from cortexd.diagnosis.sandboxed import Denied
from cortexd.errors import InvalidConfig, PortInUse
from cortexd.kinds import GIB
from cortexd.model import ModelSpec, build_spec
from tests.support.house import EMPTY_GGUF, House


def spec(backend: str = "llamacpp", **settings: Any) -> ModelSpec:
    given = {"path": "/models/m", "exec": "/bin/server", "gpus": (), "backend": backend, **settings}
    return build_spec("m", given, BACKENDS[backend].defaults(0))


def lines(model: ModelSpec, **seen: Any) -> list[str]:
    """What is found, as a person reads it."""
    values: dict[str, Any] = {"survey": Survey(), "command": ("/bin/server", "--version"), "asked_seconds": 20} | seen
    return [f"{f.level}: {f.sentence}" for f in findings(model, BACKENDS[model.backend], Evidence(**values))]


def test_nothing() -> None:
    assert lines(spec()) == []
    assert lines(spec(), version=Version(0), gpus=Gpus(0), folders=[Folder(Path("/c"), free=50 * GIB)]) == []


SAID = "exec=/bin/server: ended with status {} when asked for '--version'{}; repair its installation, or give another one with exec="


@pytest.mark.parametrize(("version", "more", "line"), [
    (Version(127, "no library"), {}, "error: " + SAID.format(127, ": no library")),
    (Version(127, "no library"), {"drop_ins": True}, "warning: " + SAID.format(127, ": no library")),
    (Version(2), {}, "warning: " + SAID.format(2, "")),
    (Version(-4), {}, "error: " + SAID.format(-4, "").replace("status -4", "signal 4")),
    (Version(None), {}, "warning: exec=/bin/server: did not answer '--version' within 20 s; see what it does by hand"),
])  # fmt: skip
def test_the_program(version: Version, more: dict[str, Any], line: str) -> None:
    assert lines(spec(), version=version, **more) == [line]
    assert version.status is not None or lines(spec(), version=version, impatient=True) == []


def test_files() -> None:
    faults = tuple(Fault(Path(f"/models/m/{n}"), "is empty", "download it again") for n in range(8))
    found = lines(spec(), survey=Survey(faults=faults))
    assert found[0] == "error: path=/models/m/0: is empty; download it again"
    assert found[5:] == ["error: path=/models/m: 3 more of its files are no better; see those"]
    assert lines(spec(), survey=None) == [
        "warning: path=/models/m: its file system does not answer in time; check the mount"
    ]
    assert lines(spec(path="org/name"), survey=None) == []


@pytest.mark.parametrize(("backend", "names", "missing"), [
    ("vllm", {"a.safetensors"}, "config.json or params.json"), ("vllm", {"params.json"}, ""), ("tgi", {"params.json"}, "config.json"),
    ("tgi", {"config.json"}, ""), ("llamacpp", {"a.gguf"}, ""),
])  # fmt: skip
def test_a_folder_without_a_config(backend: str, names: set[str], missing: str) -> None:
    found = lines(spec(backend), survey=Survey(names=frozenset(names), is_folder=True))
    assert [line.split("; ")[0] for line in found] == ([f"error: path=/models/m: has no {missing}"] if missing else [])


def test_the_sandbox() -> None:
    hidden, real = Path("/models/m/config.json"), Path("/tmp/blobs/1")
    said = f"path={hidden}: links to {real}, which the sandbox hides; move it elsewhere, or set PrivateTmp=false"
    assert lines(spec(), unseen=((hidden, real),)) == [f"error: {said}"]
    assert lines(spec(), unseen=((hidden, real),), drop_ins=True) == [f"warning: {said}"]
    assert lines(spec(), unseen=((hidden, real),), denied=()) == []  # tried, and there
    denied = Denied(hidden, 2, write=False)
    assert lines(spec(), unseen=((hidden, real),), denied=(denied,)) == [f"error: {said}"]
    remedy = "move it elsewhere, or set ProtectHome=read-only (it is tmpfs)"
    assert lines(spec(ProtectHome="tmpfs"), denied=(denied,)) == [
        f"error: path={hidden}: is not there inside the sandbox; {remedy}"
    ]
    (line,) = lines(spec(), denied=(Denied(Path("/cache"), 30, write=True),))
    assert line.startswith("error: folder=/cache: cannot be written inside the sandbox: Read-only file system; ")
    assert lines(spec(), untried="no answer")[0].startswith("warning: sandbox: was not tried: no answer; ")


U = ("GPU-11111111-aaaa", "GPU-22222222-bbbb")


@pytest.mark.parametrize(("gpus", "there", "explicit", "level"), [
    (("0", "1"), Gpus(2), True, ""), (("2",), Gpus(2), True, "error"), (("0",), Gpus(0), True, "warning"), (("0",), Gpus(0), False, ""),
    (("0",), Gpus(None), True, ""), ((), Gpus(0), True, ""), (("GPU-1111",), Gpus(2, U), True, ""), (("GPU-3",), Gpus(2, U), True, "error"),
    (("GPU-3",), Gpus(2), True, ""), (("MIG-1",), Gpus(2, U), True, ""),
])  # fmt: skip
def test_gpus(gpus: tuple[str, ...], there: Gpus, explicit: bool, level: str) -> None:
    found = lines(spec(gpus=gpus), gpus=there, explicit_gpus=explicit)
    assert [line.split(":")[0] for line in found] == ([level] if level else [])
    assert all(f"gpus={','.join(gpus)}: this machine " in line for line in found)


def test_memory() -> None:
    big = Survey(size=int(40.2 * GIB))
    problem = "the model has 40.2G, and will be read from disk again and again, or be killed"
    remedy = "raise memory=, or take a smaller or more quantized model"
    assert lines(spec(memory=32 * GIB), survey=big) == [f"warning: memory=32G: {problem}; {remedy}"]
    assert lines(spec(memory=48 * GIB), survey=big) == lines(spec(memory=2**64 - 1), survey=big) == []


def test_folders() -> None:
    cache, little = Path("/c/hub"), Folder(Path("/c"), free=GIB // 2)
    closed, unmade = Folder(cache, obstacle=cache), Folder(cache, obstacle=Path("/c"))
    assert lines(spec(), folders=[closed])[0].startswith("error: folder=/c/hub: cannot be written; ")
    assert lines(spec(), folders=[unmade])[0].startswith("error: folder=/c/hub: cannot be made in /c; ")
    assert lines(spec(), folders=[little]) == ["warning: folder=/c: has 512.0M free; make room"]


@pytest.mark.parametrize(("seen", "begin"), [
    (Hub("org/name", cached=True, access=Access.GATED), ""), (Hub("org/name"), ""), (Hub("org/name", access=Access.OPEN), ""),
    (Hub("org/name", offline=True), "is not in the cache, and HF_HUB_OFFLINE forbids"),
    (Hub("org/name", access=Access.UNKNOWN), "the hub has no such public repository; check its spelling; a private one needs a token: "
     "'cortexctl secret set m HF_TOKEN'"),
    (Hub("org/name", has_token=True, access=Access.UNKNOWN), "the hub has no such repository for your token"),
    (Hub("org/name", access=Access.GATED), "the hub gives it only to those who agreed to its terms, and there is no token; agree on its "
     "page, then 'cortexctl secret set m HF_TOKEN'"),
    (Hub("org/name", has_token=True, access=Access.REFUSED), "the hub does not let your token have it"),
])  # fmt: skip
def test_the_hub(seen: Hub, begin: str) -> None:
    found = lines(spec("vllm", path="org/name"), survey=None, hub=seen)
    assert len(found) == bool(begin)
    assert all(line.startswith(f"error: path=org/name: {begin}") for line in found)


def test_errors_come_first_and_once() -> None:
    found = findings(
        spec(gpus=("0",)), BACKENDS["llamacpp"],
        Evidence(survey=Survey(faults=(Fault(Path("/m"), "is empty", "x"), Fault(Path("/m"), "again", "x"))), gpus=Gpus(0),
                 explicit_gpus=True, untried="why"),
    )  # fmt: skip
    assert [f.level for f in found] == [Level.ERROR, Level.WARNING, Level.WARNING]


def test_what_others_say_is_said_the_same_way() -> None:
    text = "path='/no/such': does not exist; give a file or folder, or a reference such as org/name"
    assert from_error(InvalidConfig(text)) == error(
        "path", "/no/such", "does not exist", "give a file or folder, or a reference such as org/name"
    )
    held = PortInUse("port 8000 is held by model a; stop it, or 'cortexctl set m port=auto'")
    assert from_error(held) == error("port", 8000, "is held by model a", "stop it, or 'cortexctl set m port=auto'")
    assert from_error(InvalidConfig("path: is missing; give --path FILE")).value == ""


def test_what_comes_from_outside_is_one_printable_line() -> None:
    finding = warning("exec", "/a\x1b[2J\n/\udcff", "said \x07" + "x" * 9999, "look")
    assert finding.sentence.isprintable() and len(finding.sentence) < 700
    assert plain("ä ü", 10) == "ä ü"
    assert (
        Finding(Level.ERROR, "path", "with blank", "is odd", "rename it").sentence
        == "path='with blank': is odd; rename it"
    )


# A start


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.open()
    yield house
    await house.close()


async def test_a_start_is_refused_with_the_reason_and_nothing_is_done(house: House) -> None:
    await house.register()
    house.gguf.write_bytes(EMPTY_GGUF[:-4])
    with pytest.raises(
        InvalidConfig, match="is cut off: it ends after 20 bytes, inside its own header; download it again"
    ):
        await house.start()
    assert house.asked("StartUnit") == [] and await house.kinds() == ["registered", "start-refused"]
    house.gguf.write_bytes(EMPTY_GGUF)
    assert await (await house.start()).wait() == []


async def test_a_restart_is_refused_before_the_server_is_stopped(house: House) -> None:
    await house.running()
    house.server.write_text("#!/bin/sh\nexit 127\n")
    run = house.unit().invocation_id
    with pytest.raises(InvalidConfig, match="ended with status 127"):
        await house.restart()
    assert house.unit().invocation_id == run and house.asked("RestartUnit") == []


async def test_a_warning_goes_with_the_job(house: House) -> None:
    await house.register(memory="32M")
    os.truncate(house.gguf, 64 << 20)
    (warned,) = await (await house.start()).wait()
    assert warned.startswith("memory=32M: the model has 64.0M, and will be read from disk")


async def test_a_check_says_all_and_does_nothing(house: House) -> None:
    await house.register()
    os.truncate(house.gguf, 0)
    house.server.chmod(0o644)
    found = [(f.level.value, f.what) for f in await house.manager.check("a")]
    assert found == [("error", "path"), ("error", "exec"), ("warning", "sandbox")]
    assert house.asked("StartUnit") == [] and await house.kinds() == ["registered"]


async def test_a_file_system_that_hangs_holds_neither_the_start_nor_the_daemon(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    gate = threading.Event()

    def hang(_: Path) -> Survey:
        gate.wait()
        return Survey()

    monkeypatch.setattr(modelfiles, "survey", hang)
    monkeypatch.setattr(examiner, "BEFORE_START", examiner.Bounds(files=0.1, version=1, hub=1))
    try:
        job = await asyncio.wait_for(house.start(), 5)
        assert await job.wait() == [f"path={house.gguf}: its file system does not answer in time; check the mount"]
    finally:
        gate.set()


async def test_the_hub_is_asked_for_what_is_not_cached_with_the_models_own_token(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []

    async def ask(name: str, endpoint: str, token: str, seconds: float) -> Access:
        asked.append((name, endpoint, token))
        return Access.OPEN if token else Access.GATED

    monkeypatch.setattr(hub, "ask", ask)
    await house.register(path="org/name:Q4_K_M", env="HF_ENDPOINT=http://mirror")
    with pytest.raises(InvalidConfig, match="agree on its page, then 'cortexctl secret set a HF_TOKEN'"):
        await house.start()
    house.manager.catalog.secrets.set("a", "HF_TOKEN", b"hf_of_a")
    await (await house.start()).wait()
    assert asked == [("org/name", "http://mirror", ""), ("org/name", "http://mirror", "hf_of_a")]
    await (await house.stop()).wait()
    cache = Path(house.manager.view("a").model.plan.environment["LLAMA_CACHE"])
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "org_name_q4.gguf").touch()
    await (await house.start()).wait()
    assert len(asked) == 2
