"""A daemon was killed in something, and the next thing that its user asks for is the opposite."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program
from tests.support.wait import until

MODEL = "opposed"


def killed_in(daemon: Daemon, kind: str, details: str = "{}") -> None:
    """The next daemon finds that."""
    if daemon.process and daemon.process.poll() is None:
        daemon.kill()
    with closing(sqlite3.connect(Path.home() / ".cortex" / "models.db")) as database, database:
        row = (0, MODEL, kind, details, "me[1]")
        database.execute("INSERT INTO intents (time, model, kind, details, actor) VALUES (?, ?, ?, ?, ?)", row)
    daemon.start()


def test_the_last_word_is_the_users(daemon: Daemon, cortex: Cortex) -> None:
    server = make_program(Path.home() / "bin" / "fake-server")
    register = (
        "register", MODEL, "--backend", "llamacpp", "--path", str(lab.TINY_GGUF), "--exec", str(server), "--gpus", "none",
        "--port", "auto", "--memory", "1G",
    )  # fmt: skip
    cortex.run(*register)
    killed_in(daemon, "start")
    cortex.run("stop", MODEL)
    assert cortex.properties(MODEL)["State"] == "stopped"
    until(lambda: not unfinished(), "an end of what was begun")
    assert cortex.properties(MODEL)["State"] == "stopped"

    killed_in(daemon, "enable")
    cortex.run("disable", MODEL)
    assert cortex.properties(MODEL)["UnitFileState"] == "disabled"

    killed_in(daemon, "unregister", '{"force": true}')
    cortex.run(*register)
    cortex.run("start", MODEL)
    until(lambda: not unfinished(), "an end of what was begun")
    assert cortex.properties(MODEL)["State"] == "ready"


def unfinished() -> list[tuple[str]]:
    with closing(sqlite3.connect(Path.home() / ".cortex" / "models.db")) as database:
        return database.execute("SELECT kind FROM intents").fetchall()
