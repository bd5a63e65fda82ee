"""What was confirmed is on disk: the order of what is asked of the kernel and of SQLite, in each use-case.

A file is synced before it gets its name, and a folder after a name in it came, changed or went (fsync(2)); and all of that
before the transaction that says that it is done.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cortexd import owned
from cortexd.app import take_folder
from cortexd.durable import make_folder
from cortexd.errors import SystemdUnavailable
from cortexd.store import Store, files
from cortexd.store.schema import VERSION
from cortexd.systemd import client
from tests.manager.steps import fail
from tests.support.house import ME, House

Do = Callable[[House], Awaitable[object]]
MADE_AGAIN = (".part", ".new", ".reserve", "-shm", "-wal")
"""Ends of names, or a whole one, whose loss is none."""


class Disk:
    """What of it below `top` a power cut may take away, as far as this process has asked for."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.synced: set[int] = set()
        """Files, by their numbers."""
        self.owed: dict[Path, str] = {}
        """Folders that are to be synced, and for what."""
        self.wrong: list[str] = []
        self.commits: list[dict[Path, str]] = []
        """What was owed at each."""
        self.renames = 0

    def changed(self, path: Path, what: str) -> None:
        if path.is_relative_to(self.top) and not path.name.endswith(MADE_AGAIN):
            self.owed[path.parent] = f"{what} {path}"

    def sync(self, descriptor: int) -> None:
        self.synced.add(os.fstat(descriptor).st_ino)
        self.owed.pop(_opened(descriptor), None)

    def rename(self, old: Path, new: Path) -> None:
        found = old.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_ino not in self.synced:
            self.wrong.append(f"{new} gets its name before it is on disk")
        self.renames += 1
        self.changed(new, "rename to")
        self.changed(old, "rename of")

    def statement(self, sql: str) -> None:
        if sql == "COMMIT":
            self.commits.append(dict(self.owed))


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _path(path: Any, folder: int | None) -> Path:
    return _opened(folder) / path if folder is not None else Path(path).absolute()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Its books are kept from now on."""
    disk = Disk(tmp_path)
    fsync, replace, rename, mkdir, unlink, link = os.fsync, os.replace, os.rename, os.mkdir, os.unlink, os.link

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        disk.sync(descriptor)

    def renamed(call: Callable[..., None]) -> Callable[..., None]:
        def function(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            disk.rename(_path(old, src_dir_fd), _path(new, dst_dir_fd))
            call(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        return function

    def made(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        disk.changed(_path(path, dir_fd), "mkdir")

    def unlinked(path: Any, *, dir_fd: int | None = None) -> None:
        where = _path(path, dir_fd)
        is_file = where.is_file() and not where.is_symlink()
        unlink(path, dir_fd=dir_fd)
        if is_file:
            disk.changed(where, "unlink")

    def linked(old: Any, new: Any, **more: Any) -> None:
        link(old, new, **more)
        disk.changed(_path(new, None), "link")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed(replace))
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "mkdir", made)
    monkeypatch.setattr(os, "unlink", unlinked)
    monkeypatch.setattr(os, "link", linked)
    return disk


async def _registered(house: House) -> None:
    await house.register(path="org/name:Q4")  # whose unit needs a second one


async def _register(house: House, *, api_key: bool = False) -> None:
    given = {"backend": "llamacpp", "path": str(house.gguf), "exec": str(house.server), "port": "auto", "gpus": "none"}
    await house.manager.register_all({"a": given, "b": given}, ME, api_key=api_key)


async def _secret(house: House) -> None:
    await house.register()
    await _set_secret(house)


async def _set_secret(house: House) -> None:
    await house.manager.set_secret("a", "HF_TOKEN", b"canary", ME)


async def _edited(house: House) -> None:
    await house.register()
    house.path().write_text(house.path().read_text() + "# by hand\n")


async def _repair_refused(house: House) -> None:
    house.systemd.reload = fail(SystemdUnavailable("not this time"))  # type: ignore[method-assign]
    with pytest.raises(SystemdUnavailable):
        await house.manager.repair("a", ME)


async def _gone(house: House) -> None:
    shutil.rmtree(house.scope.unit_folder.parents[1])


async def _unregister(house: House) -> None:
    await (await house.unregister()).wait()


async def _nothing(house: House) -> None:
    pass


USES: dict[str, tuple[Do, Do]] = {
    "register": (_nothing, _registered),
    "register, where there is no folder of units": (_gone, _registered),
    "register two with keys": (_nothing, lambda house: _register(house, api_key=True)),
    "set": (lambda house: house.register(), lambda house: house.manager.set("a", {"memory": "3G"}, ME)),
    "secret set": (lambda house: house.register(), _set_secret),
    "secret set, again": (_secret, lambda house: house.manager.set_secret("a", "OTHER", b"canary", ME)),
    "secret unset": (_secret, lambda house: house.manager.remove_secret("a", "HF_TOKEN", ME)),
    "repair": (_edited, lambda house: house.manager.repair("a", ME)),
    "repair, reload refused": (_edited, _repair_refused),
    "unregister": (_secret, _unregister),
}


@pytest.mark.parametrize("use", USES)
async def test_what_is_confirmed_is_on_disk_and_so_is_what_a_transaction_speaks_of(
    house: House, disk: Disk, use: str
) -> None:
    prepare, do = USES[use]
    await prepare(house)
    await house.events()
    await house.store._connection.run(lambda connection: connection.set_trace_callback(disk.statement))
    disk.owed.clear()
    disk.commits.clear()
    await do(house)
    assert disk.wrong == [] and disk.owed == {}
    assert disk.commits and disk.commits[-1] == {}, "before it says that it is done"


async def test_the_first_start_of_all(tmp_path: Path, disk: Disk) -> None:
    scope = House(tmp_path).scope
    disk.owed.clear()
    os.close(take_folder(scope))
    store = await Store.open(scope.database)
    assert disk.owed == {} and scope.data.stat().st_ino in disk.synced
    await store.close()


def test_folders_and_those_above_them(tmp_path: Path, disk: Disk) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert disk.owed == {} and stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    make_folder(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    with owned.opened(tmp_path / "secrets", "a", make=True):
        assert disk.owed == {}


async def test_a_copy_before_a_migration_and_one_that_takes_its_place(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "models.db"
    await (await Store.open(path)).close()
    for number in range(2):
        store = await Store.open(path)
        await store.save_models({f"m{number}": {}}, [])
        await store.close()
        files.copy(path, VERSION, time.time())
        assert disk.wrong == [] and disk.owed == {} and disk.renames == (1, 3)[number]


async def test_a_damaged_one_that_is_set_aside(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "models.db"
    path.write_bytes(b"no database" * 99)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    files.set_aside(path, time.time())
    assert disk.renames == 1 and disk.owed == {}


def test_links_that_systemd_made(tmp_path: Path, disk: Disk) -> None:
    wants = tmp_path / "user" / "default.target.wants"
    wants.parent.mkdir()
    asyncio.run(asyncio.to_thread(disk.owed.clear))
    wants.mkdir()
    disk.changed(wants / "cortex-a.service", "symlink")
    client._sync_links([("symlink", str(wants / "cortex-a.service"), "/x")])
    assert disk.owed == {}
