"""Each file of ours, and something else in its place: an error that names it, soon, in little memory; nothing else changes.

Every case runs in a process of its own, which a FIFO may hold up and a huge file may fill, without harm to the others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import select
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cortexd import runlog, startup
from cortexd.app import take_folder
from cortexd.backends import library
from cortexd.errors import CortexError
from cortexd.live import directives_of
from cortexd.rebuild import rebuild
from cortexd.sandbox.proving import Prover
from cortexd.sandbox.trial import Trials
from cortexd.scope import Scope, user_scope
from cortexd.secrets import Secrets
from cortexd.store import Store
from cortexd.systemd.fake import FakeSystemd
from cortexd.units import files
from cortexd.units.loadable import check_loadable
from cortexd.units.tools import find_tools
from tests.hostile.faults import FAULTS, lay

SECONDS, MEMORY = 10, 200 << 20
"""For a case; of memory beyond what the process began with."""
TOOLS = replace(find_tools("252"), namespaces=False)


def database(scope: Scope) -> str:
    async def go() -> str:
        store = await Store.open(scope.database)
        await store.close()
        return "aside" if store.damaged else ""

    return asyncio.run(go())


def unit(scope: Scope) -> str:
    """Read for a lost database's sake, never loaded where systemd would hang, and never written over."""
    path = scope.unit_folder / "cortex-m.service"

    async def lost() -> None:
        store = await Store.open(scope.database)
        await rebuild(store, scope.unit_folder)
        await store.close()

    asyncio.run(lost())
    check_loadable(scope.unit_folder, path.name)
    files.check_writable(path)
    return ""


def drop_in(scope: Scope) -> str:
    directives_of([str(scope.unit_folder / "cortex-m.service.d" / "x.conf")])
    return ""


def backend(scope: Scope) -> str:
    found = library.find("x", scope)
    return "" if found else "not found"


def environment(scope: Scope) -> str:
    secrets = Secrets(scope.secrets)
    if secrets.names("m"):
        secrets.set("m", "X_OTHER", b"value")
    return ""


def kept_proofs(scope: Scope) -> str:
    systemd = FakeSystemd(scope.unit_folder)
    prover = Prover(scope, replace(TOOLS), systemd, Trials(scope, TOOLS, systemd))
    asyncio.run(prover.load())
    asyncio.run(prover._keep())
    return ""


def saved_log(scope: Scope) -> str:
    runlog.save(scope.logs, "m", "f" * 32, 1, b"text\n")
    runlog.forget(scope.logs, "m")
    return ""


def home(scope: Scope) -> str:
    os.close(take_folder(scope))
    return ""


def hint(scope: Scope) -> str:
    assert scope.runtime
    startup.touch(scope.runtime / "seen")
    return ""


@dataclass(frozen=True)
class Kind:
    """What is done with a file, where it is, what belongs there, and how it ends for each fault that is not refused by an
    error with its path: "fine", "aside" (kept under another name), or "said" (a warning names it, and work goes on)."""

    work: Callable[[Scope], str]
    where: str
    good: bytes = b""
    ends: Mapping[str, str] = field(default_factory=dict)


OURS = files.with_marker("[Service]\n" + "#" * 200 + "\n").encode()
SECRETS = b'# revision 0123456789abcdef\nX_SECRET="value"\n'
PROOFS = b'{"when": "", "namespaces": true, "left_out": [], "proofs": {}, "said": []}\n'
A_FOLDER = {"folder": "fine"}
REMADE = dict.fromkeys(
    ("truncated", "garbage", "link", "dangling link", "fifo", "folder", "closed", "another's"), "said"
)
KINDS = {
    "database": Kind(
        database, ".cortex/models.db", ends={"truncated": "aside", "garbage": "aside", "huge": "fine"}
    ),  # a huge one is a good one with room in it
    "database's log": Kind(
        database, ".cortex/models.db-wal", ends=dict.fromkeys(("truncated", "garbage", "huge"), "fine")
    ),  # what bears no check sum of SQLite's is not taken for part of it
    "unit": Kind(unit, ".config/systemd/user/cortex-m.service", OURS, {"read-only": "fine"}),
    "drop-in": Kind(
        drop_in, ".config/systemd/user/cortex-m.service.d/x.conf", b"[Service]\n", dict.fromkeys(FAULTS, "fine")
    ),  # the user's own, read alone
    "backend": Kind(
        backend, ".config/cortex/backends/x.toml", (library.SHIPPED / "sglang.toml").read_bytes(), {"read-only": "fine"}
    ),
    "environment": Kind(environment, ".cortex/secrets/m/environment", SECRETS, {"read-only": "fine"}),
    "a model's secrets": Kind(environment, ".cortex/secrets/m", ends=A_FOLDER),
    "secrets": Kind(environment, ".cortex/secrets", ends=A_FOLDER),
    "sandbox": Kind(kept_proofs, ".cortex/sandbox.json", PROOFS, {"read-only": "fine", "huge": "said", **REMADE}),
    "a model's logs": Kind(saved_log, ".cortex/logs/m", ends=A_FOLDER),
    "logs": Kind(saved_log, ".cortex/logs", ends=A_FOLDER),
    "home": Kind(home, ".cortex", ends={"link": "fine", **A_FOLDER}),  # to another disk of the user's
    "hint": Kind(hint, "run/seen", ends=dict.fromkeys(("truncated", "garbage", "huge"), "fine")),
}


def child(work: Callable[[], str], write: int) -> None:
    """Never returns: tells how it ended."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        told: dict[str, str] = {"log": ""}
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: told.__setitem__("log", told["log"] + record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        try:
            told["said"] = work()
        except (CortexError, OSError) as e:
            told["error"] = str(e)
        except BaseException as e:
            told["crash"] = repr(e)
        os.write(write, json.dumps(told).encode())
    finally:
        os._exit(0)


def outcome(work: Callable[[], str]) -> dict[str, str]:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        child(work, write)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], SECONDS)
        text = os.read(read, 1 << 16) if ready else b""
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return dict(json.loads(text)) if text else {"crash": "it hangs"}


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that a write would change."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


async def furnish(scope: Scope) -> None:
    """A home as cortexd has it."""
    await (await Store.open(scope.database)).close()
    for folder in (scope.secrets / "m", scope.logs / "m"):
        folder.mkdir(parents=True, mode=0o700)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_something_else_in_its_place(kind: str, fault: str, tmp_path: Path) -> None:
    what = KINDS[kind]
    scope = user_scope({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": f"{tmp_path}/run"})
    await furnish(scope)
    path, elsewhere = tmp_path / what.where, tmp_path / "outside" / "elsewhere"
    path.parent.mkdir(parents=True, exist_ok=True)
    good = path.read_bytes() if path.is_file() else what.good
    (elsewhere / "m").mkdir(parents=True)
    for name in ("environment", "m/environment", "m/19700101T000000-canary.log"):
        (elsewhere / name).write_bytes(SECRETS)
    target = elsewhere if path.is_dir() else elsewhere / "environment"
    before = snapshot(tmp_path / "outside")

    def work() -> str:
        lay(path, fault, good, target)
        return what.work(scope)

    told = outcome(work)
    assert "crash" not in told, told
    ended = told.get("said") or ("said" if str(path) in told["log"] else "fine")
    if "error" in told:
        named = str(path) in told["error"] or (kind == "database's log" and str(scope.database) in told["error"])
        ended = "refused" if named or ("secrets" in kind and str(scope.secrets) in told["error"]) else told["error"]
    assert ended == what.ends.get(fault, "refused"), told
    if not (kind == "home" and fault == "link"):
        assert snapshot(tmp_path / "outside") == before
