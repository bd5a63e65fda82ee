"""The database: what it promises about files, versions, order, bounds and failures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sqlite3
import stat
import string
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortexd.errors import Busy, StoreFailed
from cortexd.events import Event, Priority
from cortexd.store import EventQuery, Intent, Store, database, writer
from cortexd.store.schema import MIGRATIONS, VERSION
from tests.support.wait import aio_until


def event(model: str = "a", kind: str = "start", **more: Any) -> Event:
    return Event(model=model, kind=kind, message=more.pop("message", "asked for"), **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cortex" / "models.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = await Store.open(path)
    yield store
    await store.close()


async def save(store: Store, name: str, values: dict[str, Any], told: Event) -> None:
    """Register or change one model."""
    await store.save_models({name: values}, [told])


def look(path: Path, sql: str) -> list[Any]:
    """Ask the file behind the store's back."""
    with sqlite3.connect(path) as connection:
        found = connection.execute(sql).fetchall()
    connection.close()
    return found


# -- The file


async def test_only_the_user_may_read_it(path: Path) -> None:
    previous = os.umask(0)
    try:
        store = await Store.open(path)
        await save(store, "a", {}, event())
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (path.parent, *path.parent.iterdir())}
        assert modes == {
            ".cortex": 0o700,
            "models.db": 0o600,
            "models.db-wal": 0o600,
            "models.db-shm": 0o600,
            "models.db.reserve": 0o600,
        }
        await store.close()
    finally:
        os.umask(previous)


async def test_a_folder_and_file_that_others_could_read_are_closed(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o755)
    path.touch(mode=0o644)
    path.chmod(0o644)
    store = await Store.open(path)
    assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
    await store.close()


async def test_what_was_confirmed_is_on_disk(store: Store) -> None:
    """WAL with synchronous=FULL (2): a power cut loses nothing that was answered."""
    assert await store._row("PRAGMA journal_mode") == ("wal",)
    assert await store._row("PRAGMA synchronous") == (2,)


async def test_the_schema_is_reached_in_steps(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()  # user_version 0
    store = await Store.open(path)
    await save(store, "a", {"port": 1}, event())
    await store.close()
    assert look(path, "PRAGMA user_version") == [(VERSION,)] == [(len(MIGRATIONS),)]
    again = await Store.open(path)
    assert [m.name for m in await again.models()] == ["a"]
    await again.close()


async def test_a_migration_that_fails_leaves_the_version_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await Store.open(path)).close()
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE more (x)", "NONSENSE")))
    monkeypatch.setattr(database, "VERSION", VERSION + 1)
    with pytest.raises(StoreFailed):
        await Store.open(path)
    assert look(path, "PRAGMA user_version") == [(VERSION,)]
    assert look(path, "SELECT name FROM sqlite_schema WHERE name = 'more'") == []


async def test_a_newer_version_is_left_alone(path: Path) -> None:
    await (await Store.open(path)).close()
    look(path, f"PRAGMA user_version={VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(
        StoreFailed, match=f"is of version {VERSION + 1}, .* install the newer cortexd again, or move the file"
    ):
        await Store.open(path)
    assert path.read_bytes() == before


def _threads() -> set[str]:
    """SQLite's; asyncio's own pool may grow."""
    return {t.name for t in threading.enumerate() if not t.name.startswith("asyncio")}


def _symlink(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "it is no regular file; check its folder, or move it away"),
        (os.mkfifo, "it is no regular file; check its folder, or move it away"),
        (_socket, "it is no regular file; check its folder, or move it away"),
        (_symlink, "it is a link; put the file itself in its place"),
    ],
)
async def test_what_is_no_database_is_named_and_kept(path: Path, make: Any, says: str) -> None:
    path.parent.mkdir(parents=True)
    make(path)
    threads = _threads()
    before = path.lstat()
    with pytest.raises(StoreFailed) as caught:
        await Store.open(path)
    assert str(path) in str(caught.value) and says in str(caught.value)
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)
    await aio_until(lambda: _threads() == threads, "no thread left")


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def _torn(path: Path) -> None:
    """A real one with a page in the middle overwritten, as a dying disk does."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,) for _ in range(200)])
    connection.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 4096)


def _cut(path: Path) -> None:
    """A real one that lost its end."""
    _torn(path)
    os.truncate(path, 10_000)


@pytest.mark.parametrize("make", [_garbage, _torn, _cut])
async def test_a_damaged_one_is_kept_aside_and_a_new_one_begun(path: Path, make: Any) -> None:
    path.parent.mkdir(parents=True)
    make(path)
    before = path.read_bytes()
    store = await Store.open(path, now=lambda: 1_800_000_000.0)
    await save(store, "a", {}, event())
    await store.close()
    assert store.new and store.damaged and store.damaged.read_bytes() == before
    assert store.damaged.name.startswith("models.db.damaged-2027")
    again = await Store.open(path)
    assert again.new and again.damaged == store.damaged, "until somebody says what there was before it"
    await again.take_over({"b": {"port": 1}}, [event("b")])
    await again.close()
    again = await Store.open(path)
    assert [m.name for m in await again.models()] == ["a", "b"] and await again.unfinished() == []
    await again.close()
    again = await Store.open(path)
    assert not again.new and [m.name for m in await again.models()] == ["a", "b"]
    await again.close()


V1 = Path(__file__).parent / "data" / "models-v1.sql"


async def test_each_older_version_is_copied_and_migrated(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(V1.read_text())
    connection.close()
    store = await Store.open(path)
    assert [(m.name, m.settings) for m in await store.models()] == [
        ("llama-70b", {"backend": "vllm", "exec": "/opt/vllm/bin/vllm", "gpus": ["0", "1"], "path": "org/llama-70b"}),
        ("tiny", {"backend": "llamacpp", "exec": "/usr/bin/llama-server", "path": "/models/tiny.gguf", "port": 8001}),
    ]
    assert [e.kind for e in await store.events(EventQuery())] == ["registered", "registered", "start", "run", "ready"]
    assert not store.new
    await store.close()
    copy = path.with_name("models.db.v1")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert look(copy, "PRAGMA user_version") == [(1,)] and len(look(copy, "SELECT * FROM models")) == 2
    # What a person is told who goes back to the older cortexd.
    look(path, f"PRAGMA user_version={VERSION + 1}")
    path.with_name(f"models.db.v{VERSION}").touch()
    with pytest.raises(StoreFailed, match=rf"go back to the copy .*: cd .* && mv models\.db\.v{VERSION} models\.db"):
        await Store.open(path)


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(StoreFailed, match=r"home/\.cortex/models\.db cannot be opened: .*; check its folder"):
        await Store.open(tmp_path / "home" / ".cortex" / "models.db")


async def test_locked_by_another_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    store = await Store.open(path)
    lock = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", lock, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"locked\n"
    with pytest.raises(StoreFailed, match="database is locked; another program keeps it locked; end that program"):
        await store.add_event(event())
    assert await store.models() == []  # reading goes on
    other.communicate()
    await store.add_event(event())
    assert len(await store.events(EventQuery())) == 1
    await store.close()


# -- Models


async def test_a_model_and_its_event_are_one(store: Store, path: Path) -> None:
    await save(store, "a", {"port": 1}, event())
    with pytest.raises(StoreFailed):
        await save(store, "b", {}, event(message=None))  # an event that the table refuses
    with pytest.raises(StoreFailed):
        await save(store, "a", {"port": 2}, event(message=None))
    with pytest.raises(StoreFailed):
        await store.delete_model("a", event(message=None))
    assert [(m.name, m.settings) for m in await store.models()] == [("a", {"port": 1})]
    assert len(await store.events(EventQuery())) == 1


async def test_change_and_delete(store: Store) -> None:
    await save(store, "b", {"port": 1}, event("b"))
    await save(store, "a", {}, event("a"))
    await save(store, "b", {"port": 2}, event("b"))
    assert [(m.name, m.settings) for m in await store.models()] == [("a", {}), ("b", {"port": 2})]
    await store.delete_model("b", event("b", "unregistered"))
    assert [m.name for m in await store.models()] == ["a"]
    assert [e.kind for e in await store.events(EventQuery(models=["b"]))] == ["start", "start", "unregistered"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"'])
async def test_a_row_that_cannot_be_read_hides_no_other(store: Store, path: Path, text: str) -> None:
    await save(store, "good", {"port": 1}, event())
    await save(store, "bad", {}, event())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE models SET settings = ? WHERE name = 'bad'", (text,))
    connection.close()
    assert [(m.name, m.settings) for m in await store.models()] == [("bad", None), ("good", {"port": 1})]


VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.text(), max_size=4).map(tuple),
)


@given(name=st.text(string.ascii_letters, min_size=1), values=st.dictionaries(st.text(), VALUES, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60, database=None)
def test_settings_come_back_as_they_were(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    async def there_and_back() -> None:
        store = await Store.open(tmp_path / "models.db")
        await save(store, name, values, event(name))
        (found,) = [m.settings for m in await store.models() if m.name == name]
        assert (
            found
            == json.loads(json.dumps(values))
            == {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        )
        await store.delete_model(name, event(name))
        await store.close()

    asyncio.run(there_and_back())


# -- Events


async def test_events_keep_everything_and_their_order(store: Store) -> None:
    sent = [
        event("a", "start", message="ä\0 'x'", priority=Priority.ERROR, details={"port": 1}, invocation_id="f" * 32,
              actor="me[1]", time=7),
        event("b", "stop", time=3),
        event("a", "stop", time=5),
    ]  # fmt: skip
    for one in sent:
        await store.add_event(one)
    found = await store.events(EventQuery())
    assert [(e.kind, e.model, e.time) for e in found] == [("start", "a", 7), ("stop", "b", 3), ("stop", "a", 5)]
    assert [e.id for e in found] == sorted(e.id for e in found)
    first = found[0]
    assert (first.message, first.priority, first.details) == ("ä\0 'x'", Priority.ERROR, {"port": 1})
    assert (first.invocation_id, first.actor) == ("f" * 32, "me[1]")


async def test_the_time_is_the_clocks(path: Path) -> None:
    store = await Store.open(path, now=lambda: 1234.5)
    await store.add_event(event())
    assert [e.time for e in await store.events(EventQuery())] == [1_234_500_000]
    await store.close()


async def test_which_events(store: Store) -> None:
    for number in range(30):
        await store.add_event(event("abc"[number % 3], "xy"[number % 2], time=number + 1))
    times = [e.time for e in await store.events(EventQuery(limit=4))]
    assert times == [27, 28, 29, 30]
    assert [e.time for e in await store.events(EventQuery(models=["a"], limit=2))] == [25, 28]
    assert {e.model for e in await store.events(EventQuery(models=["a", "b"]))} == {"a", "b"}
    assert [e.time for e in await store.events(EventQuery(kinds=["y"], since=27))] == [28, 30]
    assert [e.time for e in await store.events(EventQuery(models=["c"], kinds=["x"], since=20))] == [21, 27]
    assert await store.events(EventQuery(models=["none"])) == []
    assert await store.events(EventQuery(since=2**64 - 1)) == []


async def test_the_log_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "EVENTS_PER_MODEL", 10)
    monkeypatch.setattr(database, "EVENTS_IN_ALL", 50)
    monkeypatch.setattr(database, "_PRUNE_EVERY", 4)
    store = await Store.open(path)
    for number in range(40):
        await store.add_event(event("even" if number % 2 else "odd"))
    for model in ("even", "odd"):
        kept = await store.events(EventQuery(models=[model], limit=1000))
        assert len(kept) == 10 and kept[-1].id >= 39
    for number in range(96):
        await store.add_event(event(f"m{number}"))
    kept = await store.events(EventQuery(limit=1000))
    assert len(kept) == 50 and kept[-1].model == "m95"
    await store.close()


async def test_what_says_how_a_model_stands_outlasts_everything(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own chatter, and others'; a model that is registered no more has no such claim."""
    monkeypatch.setattr(database, "EVENTS_PER_MODEL", 20)
    monkeypatch.setattr(database, "EVENTS_IN_ALL", 50)
    monkeypatch.setattr(database, "_PRUNE_EVERY", 4)
    store = await Store.open(path)
    for name in ("a", "gone"):
        await save(store, name, {}, event(name, "registered"))
        for run in range(30):
            await store.add_event(event(name, "run", message=str(run)))
        await store.add_event(event(name, "gave-up"))
    for _ in range(30):
        await store.add_event(event("a", "busy"))
    kept = [e.message for e in await store.events(EventQuery(models=["a"], kinds=["run"], limit=1000))]
    assert kept == [str(run) for run in range(20, 30)]
    await store.delete_model("gone", event("gone", "unregistered"))
    for number in range(96):
        await store.add_event(event(f"m{number}"))
    kept = [e.message for e in await store.events(EventQuery(models=["a"], kinds=["run"], limit=1000))]
    assert kept == [str(run) for run in range(20, 30)]
    rare = await store.events(EventQuery(models=["a"], kinds=["registered", "gave-up"]))
    assert [e.kind for e in rare] == ["registered", "gave-up"]
    assert await store.events(EventQuery(models=["gone"])) == []
    assert 50 <= len(await store.events(EventQuery(limit=1000))) - (1 + 10 + 1 + 10) < 50 + 4
    await store.close()


async def test_a_models_events_are_found_by_the_index(store: Store) -> None:
    async def plan(sql: str) -> str:
        rows = await store._connection.rows("EXPLAIN QUERY PLAN " + sql)
        return "; ".join(str(row[3]) for row in rows)

    statements: list[str] = []
    await trace(store, statements.append)
    await store.events(EventQuery(models=["a"], limit=10))
    await store.events(EventQuery(models=["a", "b"], kinds=["x"], limit=10))
    await store.events(EventQuery(limit=10))
    await trace(store, None)
    one, several, every = [await plan(sql) for sql in statements if sql.startswith("SELECT")]
    assert "USING INDEX events_of_model" in one and "TEMP B-TREE" not in one
    assert "USING INDEX events_of_kind" in several
    assert every == "SCAN events"  # from the newest, and ended by LIMIT
    plans = [await plan(re.sub(r"\?\d", "9", sql)) for sql, _ in database._prune(["a"])]
    assert not any("SCAN events" in told for told in plans)
    stays = "SEARCH newer USING COVERING INDEX events_of_kind (model=? AND kind=? AND "
    assert all(stays in told for told in plans)


# -- Many at once, and interrupted


async def trace(store: Store, told: Callable[[str], object] | None) -> None:
    """Have each statement told in SQLite's thread, before it is done."""
    await store._connection.run(lambda connection: connection.set_trace_callback(told))


async def test_a_hundred_writers(store: Store) -> None:
    await asyncio.gather(*(save(store, f"m{n}", {"port": n}, event(f"m{n}")) for n in range(100)))
    assert len(await store.models()) == len(await store.events(EventQuery(limit=1000))) == 100


@pytest.mark.parametrize("at", ["BEGIN", "INSERT INTO models", "INSERT INTO events", "COMMIT"])
async def test_a_write_that_is_interrupted_while_sqlite_is_at_it_is_whole(store: Store, at: str) -> None:
    loop = asyncio.get_running_loop()

    def interrupt(sql: str) -> None:
        if sql.startswith(at):
            loop.call_soon_threadsafe(write.cancel)  # while SQLite's thread is at it

    await trace(store, interrupt)
    write = asyncio.create_task(save(store, "a", {}, event()))
    with pytest.raises(asyncio.CancelledError):
        await write
    await trace(store, None)
    assert len(await store.models()) == len(await store.events(EventQuery())) == 1
    await store.add_event(event("b"))
    assert [e.model for e in await store.events(EventQuery(models=["b"]))] == ["b"]


async def test_a_write_that_is_interrupted_before_its_turn_is_nothing(store: Store) -> None:
    loop, at_it, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slowly(sql: str) -> None:
        if sql == "COMMIT":
            loop.call_soon_threadsafe(at_it.set)
            go_on.wait(10)

    await trace(store, slowly)
    first = asyncio.create_task(store.add_event(event("first")))
    await at_it.wait()
    second, third = (asyncio.create_task(save(store, name, {}, event(name))) for name in ("second", "third"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    await asyncio.gather(first, third)
    assert [m.name for m in await store.models()] == ["third"]
    assert [e.model for e in await store.events(EventQuery())] == ["first", "third"]


async def test_those_who_wait_share_a_transaction_but_not_an_error(store: Store) -> None:
    statements: list[str] = []
    await trace(store, statements.append)
    ends = await asyncio.gather(
        *(store.add_event(event(f"m{n}", message=None if n == 50 else "told")) for n in range(100)),
        return_exceptions=True,
    )
    await trace(store, None)
    assert [type(end) for end in ends] == [StoreFailed if n == 50 else type(None) for n in range(100)]
    assert [e.model for e in await store.events(EventQuery(limit=200))] == [f"m{n}" for n in range(100) if n != 50]
    assert statements.count("COMMIT") == 1


async def test_too_many_that_wait_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 10)
    ends = await asyncio.gather(*(store.add_event(event()) for _ in range(30)), return_exceptions=True)
    assert [type(end) for end in ends] == [type(None)] * 10 + [Busy] * 20
    assert len(await store.events(EventQuery())) == 10
    await store.add_event(event())


async def test_what_waits_is_written_before_the_end(path: Path) -> None:
    store = await Store.open(path)
    waiting = [asyncio.create_task(store.add_event(event(f"m{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*waiting)
    assert look(path, "SELECT COUNT(*) FROM events") == [(10,)]


async def test_a_commit_that_fails_is_undone(store: Store) -> None:
    def authorize(action: int, what: str | None, *_: str | None) -> int:
        refused = (action, what) == (22, "COMMIT")  # SQLITE_TRANSACTION (sqlite.org/c3ref/c_alter_table.html)
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    await store._connection.run(lambda connection: connection.set_authorizer(authorize))
    with pytest.raises(StoreFailed):
        await save(store, "a", {}, event())
    await store._connection.run(lambda connection: connection.set_authorizer(None))
    assert await store.models() == []
    await save(store, "b", {}, event("b"))
    assert [m.name for m in await store.models()] == ["b"]


# -- Intents


async def test_an_intent_begins_with_the_event_that_says_who_asked_for_it(store: Store, path: Path) -> None:
    await store.add_event(event("b"))
    first = await store.begin(Intent(model="a", kind="start"), event("a"))
    assert [(intent.id, intent.model) for intent in await store.unfinished() if intent.model] == [(first, "a")]
    await store.end(first)
    assert [e.model for e in await store.events(EventQuery())] == ["b", "a"]
    with pytest.raises(StoreFailed):
        await store.begin(Intent(model="a", kind="start"), event("a", message=None))
    assert look(path, "SELECT COUNT(*) FROM intents WHERE model = 'a'") == [(0,)]


async def test_an_intent_is_there_until_it_is_ended(store: Store, path: Path) -> None:
    first = await store.begin(Intent(model="a", kind="unregister", details={"force": True}, actor="me[1]"))
    second = await store.begin(Intent(model="b", kind="restart"))
    again = await Store.open(path)
    await again.take_over({}, [])
    assert await again.unfinished() == [
        Intent(id=first, model="a", kind="unregister", details={"force": True}, actor="me[1]"),
        Intent(id=second, model="b", kind="restart"),
    ]
    await again.end(first, event())
    await again.end(first)
    assert [i.id for i in await store.unfinished()] == [second]
    assert [e.model for e in await store.events(EventQuery())] == ["a"]
    await again.close()
