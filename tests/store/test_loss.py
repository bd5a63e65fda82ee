"""What is killed, refused or overtaken on the way to a database loses none: a new one, a copy, one that is set aside."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cortexd.errors import StoreFailed
from cortexd.events import Event
from cortexd.store import Intent, Store, database, files
from cortexd.store.schema import MIGRATIONS, VERSION

NOW = 1_800_000_000.0
V1 = Path(__file__).parents[1] / "data" / "models-v1.sql"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "the user's" / ".cortex"
    folder.mkdir(parents=True, mode=0o700)
    return folder / "models.db"


def old(path: Path, *more: str) -> None:
    """A database of version 1."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(V1.read_text())
        for statement in more:
            connection.execute(statement)
        connection.commit()


def look(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def event(name: str) -> Event:
    return Event(model=name, kind="registered", message="")


STATEMENTS = [(step, number) for step, each in enumerate(MIGRATIONS) for number in range(len(each))]


@pytest.mark.parametrize(("step", "number"), STATEMENTS)
async def test_a_new_one_that_fails_on_the_way_is_still_new(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    steps = [list(each) for each in MIGRATIONS]
    steps[step][number] = "NONSENSE"
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", steps)
        with pytest.raises(StoreFailed):
            await Store.open(path)
    assert look(path, "PRAGMA user_version") == [(0,)]
    store = await Store.open(path)
    assert store.new, "what there was before it is still to be taken over"
    await store.close()
    assert list(path.parent.glob("models.db.v*")) == [], "of nothing there is no copy"


async def test_a_new_one_begins_with_its_schema_and_what_says_that_it_is_new_in_one_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kills it between two of them."""
    said: list[str] = []
    connect = sqlite3.connect

    def traced(*given: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*given, **more)
        connection.set_trace_callback(said.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    await (await Store.open(path)).close()
    changes = [sql for sql in said if sql.startswith(("CREATE TABLE", "INSERT", "PRAGMA user_version=", "COMMIT"))]
    until_commit = changes[: changes.index("COMMIT")]
    assert len([sql for sql in until_commit if sql.startswith("CREATE TABLE")]) == 3
    assert any(database.NEW in sql for sql in until_commit) and f"PRAGMA user_version={VERSION}" in until_commit


async def test_a_copy_is_never_overwritten(path: Path) -> None:
    old(path)
    copy = files.copy_of(path, 1)
    old(copy, "INSERT INTO models VALUES ('genuine', '{}', 0, 0)")
    await (await Store.open(path, now=lambda: NOW)).close()
    (kept,) = path.parent.glob("models.db.v1.kept-2027*")
    assert len(look(kept, "SELECT * FROM models")) == 3
    assert len(look(copy, "SELECT * FROM models")) == 2, "this is the one to go back to"


async def test_a_migration_that_fails_again_and_again_leaves_one_copy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(path)
    monkeypatch.setattr(database, "MIGRATIONS", (MIGRATIONS[0], ("NONSENSE",)))
    for _ in range(3):
        with pytest.raises(StoreFailed):
            await Store.open(path)
    assert sorted(each.name for each in path.parent.glob("models.db.*")) == ["models.db.v1"]


async def test_going_back_loses_nothing_of_the_newer_one(path: Path) -> None:
    older = path.with_name("models.db.v1")
    older.write_bytes(b"of an even older cortexd")
    store = await Store.open(path)
    await store.take_over({"a": {}}, [])
    await store.close()
    files.copy(path, VERSION, NOW)
    newer = sqlite3.connect(path)  # it lives on, and so do its side files
    newer.execute("INSERT INTO models VALUES ('new', '{}', 0, 0)")
    newer.execute(f"PRAGMA user_version={VERSION + 1}")
    newer.commit()
    with pytest.raises(StoreFailed) as refused:
        await Store.open(path, now=lambda: NOW)
    for suffix in ("-wal", "-shm"):
        assert Path(f"{path}{suffix}").exists()
    command = str(refused.value).partition("before it was upgraded: ")[2]
    subprocess.run(command, shell=True, check=True, cwd="/")
    assert subprocess.run(command, shell=True, check=False, cwd="/", capture_output=True).returncode != 0, "only once"
    newer.close()
    (aside,) = path.parent.glob("newer-2027*")
    assert [row[0] for row in look(aside / path.name, "SELECT name FROM models")] == ["a", "new"]
    assert older.read_bytes() == b"of an even older cortexd"
    store = await Store.open(path)
    assert [model.name for model in await store.models()] == ["a"] and not store.new
    await store.close()


def damaged(path: Path) -> dict[str, bytes]:
    """Three files that belong together."""
    made = {suffix: f"damaged{suffix}".encode() * 99 for suffix in ("", "-wal", "-shm")}
    for suffix, data in made.items():
        Path(f"{path}{suffix}").write_bytes(data)
    return made


def kept_at(kept: Path) -> dict[str, bytes]:
    there = {suffix: Path(f"{kept}{suffix}") for suffix in ("", "-wal", "-shm")}
    return {suffix: each.read_bytes() for suffix, each in there.items() if each.exists()}


class Killed(BaseException):
    """In the midst of it."""


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_one_that_is_set_aside_stays_together_whenever_that_is_interrupted(
    path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    made = damaged(path)
    replace, left = os.replace, after

    def killing(*given: Any, **more: Any) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        replace(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing)
        if after < 3:
            with pytest.raises(Killed):
                files.set_aside(path, NOW)
        else:
            files.set_aside(path, NOW)
    store = await Store.open(path, now=lambda: NOW + 60)  # as the next daemon does
    assert store.new and store.damaged is not None
    assert kept_at(store.damaged) == made
    await store.close()


async def test_two_in_a_second_do_not_overwrite_each_other(path: Path) -> None:
    for number in range(3):
        path.write_bytes(b"no database %d" % number * 9)
        store = await Store.open(path, now=lambda: NOW)
        assert store.damaged and store.damaged.read_bytes() == b"no database %d" % number * 9, "the last one is told of"
        await store.close()
    assert len(list(path.parent.glob("models.db.damaged-*"))) == 3


async def test_what_was_begun_is_ended_on_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the room that is kept for that."""
    store = await Store.open(path)
    number = await store.begin(Intent(model="a", kind="register"))
    write = store._writer.write

    async def full(statements: Any) -> int:
        if path.with_name("models.db.reserve").exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        return await write(statements)

    monkeypatch.setattr(store._writer, "write", full)
    with pytest.raises(StoreFailed, match="the disk is full; make room"):
        await store.save_models({"b": {}}, [event("b")])
    await store.save_models({"a": {}}, [event("a")], [number])
    assert [model.name for model in await store.models()] == ["a"]
    assert [intent.kind for intent in await store.unfinished()] == [database.NEW]
    await store.close()
