"""doctor's look at our files, its rules about them, and the repair of their modes."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cortexctl.doctor import fixes, look_files, rules_files
from cortexctl.doctor.evidence import Files, Places, Unseen, Verified
from cortexctl.doctor.line import Cure, Fix, Level, Line
from cortexctl.errors import CtlError
from cortexd.diagnosis.machine import Folder
from cortexd.scope import user_scope
from cortexd.units.files import with_marker
from tests.hostile.faults import FAULTS, lay

FILES = Files(present=True)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A user's folders with everything that cortexd makes, as it makes it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = look_files.places({"HOME": str(tmp_path)})
    secret = found.data / "secrets" / "a"
    for folder in (secret, found.data / "logs", found.unit_folder):
        folder.mkdir(parents=True, mode=0o700)
    for folder in (found.data, secret.parent):
        folder.chmod(0o700)
    for file in (found.data / "models.db", found.data / "models.db-wal", secret / "environment"):
        write(file)
    write(found.unit_folder / "cortex-a.service", with_marker("[Service]\nExecStart=/bin/true\n"))
    return found


def write(file: Path, text: str = "", mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"XDG_CONFIG_HOME": "/c", "XDG_CACHE_HOME": "/k", "HF_HOME": "/h"},
        {"XDG_CACHE_HOME": "relative", "HF_HUB_CACHE": "/hub", "OLLAMA_MODELS": "/o", "VLLM_CACHE_ROOT": "/v"},
    ],
)
def test_the_folders_are_the_daemons(environ: dict[str, str]) -> None:
    environ = {"HOME": "/home/ann", **environ}
    here, scope = look_files.places(environ), user_scope(environ)
    assert (here.data, here.unit_folder) == (scope.data, scope.unit_folder)
    hub = scope.kept_in("HF_HUB_CACHE", scope.kept_in("HF_HOME", scope.cache / "huggingface") / "hub")
    llama = scope.kept_in("LLAMA_CACHE", scope.cache / "llama.cpp")
    ollama = scope.kept_in("OLLAMA_MODELS", scope.home / ".ollama" / "models")
    assert here.caches == (hub, llama, ollama, scope.kept_in("VLLM_CACHE_ROOT", scope.cache / "vllm"))


def test_what_cortexd_makes_is_in_order(where: Places) -> None:
    seen = look_files.files(where)
    assert seen.present and not (seen.open or seen.not_ours or seen.odd or seen.set_aside)
    rooms = look_files.rooms(where)
    assert [room.path for room in rooms] == [where.data, *where.caches] and all(room.free for room in rooms)


@pytest.mark.parametrize(
    "name",
    [
        ".cortex",
        ".cortex/models.db",
        ".cortex/models.db-wal",
        ".cortex/secrets",
        ".cortex/secrets/a",
        ".cortex/secrets/a/environment",
        ".cortex/logs",
        ".config/systemd/user/cortex-a.service",
    ],
)
@pytest.mark.parametrize("extra", [0o040, 0o001])
def test_wrong_modes_are_found_and_mended(where: Places, tmp_path: Path, name: str, extra: int) -> None:
    path = tmp_path / name
    mode = path.stat().st_mode & 0o7777
    path.chmod(mode | extra)
    seen = look_files.files(where)
    assert seen.open == (path,)
    (line,) = rules_files.modes(seen, "ann")
    assert line.level is Level.WARNING and line.remedy == f"chmod go= {path}"
    assert line.fix is not None and line.fix.cure is Cure.CLOSE
    fixes.apply(line.fix, interactive=False)
    assert path.stat().st_mode & 0o7777 == mode and look_files.files(where).open == ()


def test_a_unit_that_is_not_ours_keeps_its_mode(where: Places) -> None:
    write(where.unit_folder / "cortex-other.service", "[Service]\nExecStart=/bin/true\n", 0o644)
    assert look_files.files(where).open == ()


def test_links_and_the_like_are_named_and_never_followed(where: Places, tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, mode=0o644)
    (where.data / "models.db").unlink()
    (where.data / "models.db").symlink_to(target)
    secret = where.data / "secrets" / "b"
    secret.mkdir(mode=0o700)
    os.mkfifo(secret / "environment")
    seen = look_files.files(where)
    assert seen.odd == (where.data / "models.db", secret / "environment") and seen.open == ()
    (line,) = rules_files.modes(seen, "ann")
    assert line.level is Level.ERROR and line.fix is None
    with pytest.raises(CtlError, match=r"models\.db"):
        fixes.apply(Fix(Cure.CLOSE, "?", (str(where.data / "models.db"),)), interactive=False)
    assert target.stat().st_mode & 0o777 == 0o644


UNIT = ".config/systemd/user/cortex-a.service"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [".cortex", ".cortex/models.db", ".cortex/sandbox.json", ".cortex/logs", UNIT])
def test_whatever_lies_there_is_named_and_nothing_hangs(where: Places, tmp_path: Path, name: str, fault: str) -> None:
    if fault == "another's":
        return  # has to be laid in a process of its own (tests/hostile)
    path = tmp_path / name
    (tmp_path / "elsewhere").write_text("")
    folder = name in (".cortex", ".cortex/logs")
    lay(path, fault, b"", tmp_path / "elsewhere")
    right = ("folder",) if folder else ("truncated", "garbage", "read-only", "closed")
    # A unit that is no file of ours is the user's affair, as long as systemd can be asked to read it.
    right += () if name != UNIT else ("link", "dangling link", "fifo", "huge")
    right += ("huge",) if name.startswith(".cortex/") and not folder else ()
    seen = look_files.files(where)
    assert seen.odd == (() if fault in right else (path,)) and seen.open == ()
    assert seen.obstacles == ((path,) if name == UNIT and fault in ("fifo", "huge") else ())
    began = time.monotonic()
    look_files.verified(where)
    assert time.monotonic() - began < look_files._VERIFY_SECONDS


def test_a_data_folder_elsewhere_is_nothing_wrong(where: Places, tmp_path: Path) -> None:
    where.data.rename(tmp_path / "elsewhere")
    where.data.symlink_to(tmp_path / "elsewhere")
    seen = look_files.files(where)
    assert not (seen.odd or seen.open)
    where.data.chmod(0o755)
    seen = look_files.files(where)
    (line,) = rules_files.modes(seen, "ann")
    assert seen.open == (where.data,) and line.fix is not None
    fixes.apply(line.fix, interactive=False)
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o700 and where.data.is_symlink()


@pytest.mark.parametrize("name", ["secrets", "secrets/a", "logs"])
def test_nothing_below_a_linked_folder_is_looked_at_or_changed(where: Places, tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "a").mkdir(parents=True, mode=0o755)
    for file in (theirs / "environment", theirs / "a" / "environment", theirs / "a.log"):
        write(file, mode=0o644)
    linked = where.data / name
    linked.rename(tmp_path / "former")
    linked.symlink_to(theirs)
    seen = look_files.files(where)
    assert seen.odd == (linked,) and not (seen.open or seen.not_ours)
    below = tuple(str(linked / file) for file in ("environment", "a/environment", "a.log"))
    with pytest.raises(CtlError, match="cannot take the rights of others away"):
        fixes.apply(Fix(Cure.CLOSE, "?", below), interactive=False)
    assert {file.stat().st_mode & 0o777 for file in theirs.rglob("*") if file.is_file()} == {0o644}


def test_files_of_another_user() -> None:
    (line,) = rules_files.modes(replace(FILES, not_ours=(Path("/h/.cortex"),)), "ann")
    assert (line.level, line.remedy) == (Level.ERROR, "sudo chown -h ann: /h/.cortex")


def test_a_data_folder_of_another_users_is_never_theirs_to_lose(where: Places, tmp_path: Path) -> None:
    where.data.rename(tmp_path / "elsewhere")
    where.data.symlink_to("/etc")
    seen = look_files.files(where)
    assert seen.link_to_theirs == where.data and not (seen.not_ours or seen.open or seen.odd)
    (line,) = rules_files.modes(seen, "ann")
    assert (line.level, line.fix, line.remedy) == (Level.ERROR, None, f"rm {where.data}")
    assert "is a link to a folder of another user's" in line.text


def test_a_remedy_can_be_pasted_into_a_shell() -> None:
    odd = Path("/h/a b$(id)'")
    for seen in (replace(FILES, not_ours=(odd,)), replace(FILES, open=(odd,))):
        (line,) = rules_files.modes(seen, "ann")
        assert shlex.split(line.remedy)[-1] == str(odd)


def test_nothing_there_is_nothing_wrong(tmp_path: Path) -> None:
    seen = look_files.files(look_files.places({"HOME": str(tmp_path)}))
    assert [line.level for line in rules_files.modes(seen, "ann")] == [Level.OK] and not seen.present


def test_a_damaged_database_that_was_kept(where: Places) -> None:
    for suffix in ("", "-wal"):
        write(where.data / f"models.db.damaged-20261123T101500{suffix}")
    (line,) = rules_files.leftovers(look_files.files(where))
    assert line.level is Level.NOTE and line.text.startswith(f"{where.data}/models.db.damaged-20261123T101500: ")


GIB = 1 << 30


@pytest.mark.parametrize(
    ("rooms", "level", "words"),
    [
        ((Folder(Path("/d"), free=GIB), Folder(Path("/c"), free=9 * GIB)), Level.OK, "9.0G are free"),
        ((Folder(Path("/d"), free=100), Folder(Path("/c"), free=9 * GIB)), Level.WARNING, "only 100B are free in /d"),
        ((Folder(Path("/d"), free=GIB), Folder(Path("/c"), free=9)), Level.WARNING, "only 9B are free in /c"),
        ((Folder(Path("/d"), Path("/")), Folder(Path("/c"), free=GIB)), Level.ERROR, "/d cannot be written"),
        ((Folder(Path("/d"), free=GIB), Folder(Path("/c"), Path("/x"))), Level.WARNING, "/c cannot be written: /x"),
    ],
)
def test_room(rooms: tuple[Folder, ...], level: Level, words: str) -> None:
    (line,) = rules_files.room(rooms)
    assert line.level is level and words in line.text


def levels(verified: Verified | Unseen) -> list[Level]:
    return [line.level for line in rules_files.units(verified)]


def test_units() -> None:
    assert levels(Verified(0)) == []
    assert levels(Verified(3)) == [Level.OK]
    assert levels(Unseen("no")) == [Level.NOTE]
    assert levels(Verified(3, tuple("abcdefg"))) == [Level.WARNING] * 6


def test_systemd_is_asked_about_units(where: Places) -> None:
    assert look_files.verified(where) == Verified(1)
    write(where.unit_folder / "cortex-b:1.service", "[Service]\nExecStart=/bin/true\nNoSuchKey=1\n")
    where.installed_units.mkdir(parents=True)
    write(where.installed_units / "cortex.slice", "[Unit]\nDescription=x\n")
    seen = look_files.verified(where)
    assert isinstance(seen, Verified) and seen.units == 3
    (complaint,) = seen.complaints
    assert "cortex-b:1.service:3" in complaint and "NoSuchKey" in complaint


@pytest.mark.parametrize("fault", ["dangling link", "closed", "garbage"])
def test_a_unit_file_that_cortexd_did_not_write_is_repaired(where: Places, tmp_path: Path, fault: str) -> None:
    lay(where.unit_folder / "cortex-a.service", fault, b"", tmp_path / "elsewhere")
    verified = look_files.verified(where)
    assert isinstance(verified, Verified) and verified.foreign == {"cortex-a.service"}
    complaint = "cortex-a.service: it cannot be loaded"
    (line,) = rules_files.units(replace(verified, complaints=(complaint,)))
    assert line.remedy.startswith("'cortexctl repair a' puts its file aside") and "move the file away" in line.remedy
    (other,) = rules_files.units(replace(verified, complaints=("cortexd.service:3: odd",)))
    assert "repair" not in other.remedy


def test_no_systemd_analyze(where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert isinstance(look_files.verified(where), Unseen)


def test_the_journal() -> None:
    def of(problem: str | Unseen | None) -> Line:
        (line,) = rules_files.journal(problem)
        return line

    assert (of(None).level, of(Unseen("no")).level) == (Level.OK, Level.NOTE)
    line = of("it is volatile; join the group")
    assert (line.level, line.text, line.remedy) == (
        Level.WARNING,
        "logs are not shown: it is volatile",
        "join the group",
    )
