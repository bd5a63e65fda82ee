"""The database locked, missing, corrupt, too new or old, under a real daemon; models run all the while."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cortexd.store import files
from cortexd.store.schema import VERSION
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.wait import until

DATA = Path(__file__).parents[1] / "data"
COMMAND = [sys.executable, "-m", "cortexd.app"]


def database() -> Path:
    return Path.home() / ".cortex" / "models.db"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """By another process."""
    lock = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", lock, path], stdin=-1, stdout=-1) as other:
        assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            other.stdin.close()


def refused(status: int) -> str:
    """The one line of a daemon that cannot start."""
    done = subprocess.run(COMMAND, capture_output=True, text=True, cwd=lab.PROJECT, timeout=30)
    assert done.returncode == status and done.stderr.count("\n") == 1, done
    return done.stderr.rstrip("\n")


@pytest.fixture
def running(daemon: Daemon, cortex: Cortex) -> Iterator[dict[str, object]]:
    """A model that runs, and what must stay as it is whatever becomes of the database."""
    cortex.register_tiny("tiny")
    cortex.run("start", "tiny")
    before = same(cortex)
    yield before
    for path in database().parent.glob("models.db.*"):
        path.unlink()


def same(cortex: Cortex) -> dict[str, object]:
    found = cortex.properties("tiny")
    return {key: found[key] for key in ("InvocationID", "MainPID", "State", "Settings", "RestartNeeded")}


def test_locked_while_it_runs_and_when_it_starts(daemon: Daemon, cortex: Cortex, running: dict[str, object]) -> None:
    with locked(database()):
        told = cortex.fails("set", "tiny", "CPUWeight=50")
        assert "models.db: database is locked; another program keeps it locked; end that program" in told
        assert same(cortex) == running, "reading goes on"
        daemon.kill()
        # Not 78: the lock may be gone at the next try, which systemd makes.
        assert refused(1).endswith("database is locked; another program keeps it locked; end that program")
    daemon.start()
    assert same(cortex) == running
    cortex.run("set", "tiny", "CPUWeight=50")


def test_of_a_newer_version_it_is_refused_with_the_command_that_restores_the_copy(
    daemon: Daemon, cortex: Cortex, running: dict[str, object]
) -> None:
    daemon.stop()
    files.copy(database(), VERSION, time.time())  # as a newer cortexd does before it migrates
    with closing(sqlite3.connect(database())) as connection:
        connection.execute("DROP TABLE models")
        connection.execute(f"PRAGMA user_version={VERSION + 1}")
    told = refused(os.EX_CONFIG)
    assert f"is of version {VERSION + 1}, and this cortexd knows {VERSION}; install the newer cortexd again, or" in told
    command = re.search("go back to the copy made before it was upgraded: (.*)", told)
    assert command is not None
    newer = database().read_bytes()
    subprocess.run(command[1], shell=True, check=True)
    (aside,) = database().parent.glob("newer-*")
    assert (aside / database().name).read_bytes() == newer
    daemon.start()
    assert same(cortex) == running


@pytest.mark.parametrize("version", range(1, VERSION))
def test_of_each_older_version_it_is_copied_and_migrated(daemon: Daemon, cortex: Cortex, version: int) -> None:
    daemon.stop()
    shutil.rmtree(database().parent)
    database().parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(database())) as connection:
        connection.executescript((DATA / f"models-v{version}.sql").read_text())
    daemon.start()
    assert {found["Name"] for found in cortex.json("list")} == {"llama-70b", "tiny"}
    with closing(sqlite3.connect(files.copy_of(database(), version))) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    assert cortex.json("events", "tiny")[0]["Kind"] == "registered"


def test_corrupted_while_it_runs_is_kept_aside_at_the_next_start_and_said_loudly(
    daemon: Daemon, cortex: Cortex, running: dict[str, object]
) -> None:
    daemon.kill(signal.SIGKILL)
    with database().open("r+b") as file:
        for page in range(database().stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 100)
    database().with_name("models.db-wal").unlink(missing_ok=True)
    before = len(daemon.log.read_text())
    daemon.start()
    assert same(cortex) == running
    log = daemon.log.read_text()[before:]
    (kept,) = [
        path for path in database().parent.glob("models.db.damaged-*") if not path.name.endswith(("-shm", "-wal"))
    ]
    assert re.search(rf"ERROR .*it is kept as {kept}, and a new one is begun", log)
    assert f"the database that was damaged is kept as {kept}: past events are in it alone" in log
    assert "the database was lost; registered again from their unit files: tiny" in log
    until(lambda: cortex.json("events", "tiny"), "its events")
    assert cortex.json("events", "tiny")[0]["Priority"] == "warning"
