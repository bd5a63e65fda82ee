"""logs: what journalctl is asked for, and what is said where the journal cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortexctl import journal
from tests.cli.canned import event, model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

RUNS = ["1" * 32, "2" * 32, "3" * 32]

DROPPED = ["+", *journal.dropped_match()]
A = journal.unit_match("cortex-a.service")
ME = f"_UID={os.getuid()}"


@pytest.fixture
def journalctl(cli: Cli, tmp_path: Path) -> Path:
    """A journalctl that prints its arguments, one a line; what it says instead when asked for JSON lies in `json`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "journalctl"
    program.write_text('#!/bin/sh\ncase "$*" in *"-o json"*) cat "${0%/*}/json"; exit;; esac\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (folder / "json").touch()
    cli.environment["PATH"] = f"{folder}:{cli.environment['PATH']}"
    return folder


def asked(cli: Cli, *words: str) -> list[str]:
    """What journalctl was asked for, without how it is to read."""
    first, *rest = cli.ok("logs", *words).splitlines()
    assert first in ("--user", "--quiet")
    return rest


def test_the_unit_is_filled_in(cli: Cli, fake: FakeDaemon, journalctl: Path) -> None:
    fake.add(model("a"), model("ab"), model("c"))
    assert asked(cli, "a") == [*A, *DROPPED]
    assert asked(cli, "a*") == [*A, "+", *journal.unit_match("cortex-ab.service"), *DROPPED]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("-f", ["--follow"]),
        ("-n 20", ["--lines=20"]),
        ("-n all", ["--lines=all"]),
        ("--since -1h --until today", ["--since=-1h", "--until=today"]),
        ("--grep a.*b", ["--grep=a.*b"]),
        ("-o short-iso", ["--output=short-iso"]),
        ("-r --no-pager", ["--reverse", "--no-pager"]),
        ("-q", ["--quiet"]),
        ("--json", ["--output=json"]),
        ("--json -o cat", ["--output=cat"]),
    ],
)
def test_options_are_passed_on(cli: Cli, fake: FakeDaemon, journalctl: Path, words: str, arguments: list[str]) -> None:
    fake.add(model("a"))
    assert asked(cli, "a", *words.split()) == [*arguments, *A, *DROPPED]


def test_without_the_daemon(cli: Cli, journalctl: Path) -> None:
    """The journal is there all the same."""
    assert asked(cli, "a", "b") == [*A, "+", *journal.unit_match("cortex-b.service"), *DROPPED]


def test_what_only_its_sender_says_makes_no_line_the_models(cli: Cli) -> None:
    """A server can send any field but those that begin with "_": each part of the match has one that tells whose it is."""
    for match in (A, journal.run_match(RUNS[0])):
        parts = " ".join(match).split(" + ")
        assert all(ME in part for part in parts)
        assert all(
            "_SYSTEMD_USER_UNIT=" in part or "_SYSTEMD_INVOCATION_ID=" in part or "=stdout" in part for part in parts
        )


run_match = journal.run_match


@pytest.mark.parametrize(
    ("current", "previous"),
    [
        (RUNS[2], RUNS[1]),
        (RUNS[1], RUNS[0]),
        ("", RUNS[1]),  # nothing is current: before the last one
        ("4" * 32, RUNS[2]),  # a run that is too young to be in the events
    ],
)
def test_previous_is_the_run_before(cli: Cli, fake: FakeDaemon, journalctl: Path, current: str, previous: str) -> None:
    fake.add(model("a", InvocationID=current))
    fake.answers["ListEvents"] = (
        [event(n, Kind="run", InvocationID=run) for n, run in enumerate([RUNS[0], *RUNS, ""])],
    )
    assert asked(cli, "a", "--previous", "-n", "5") == ["--lines=5", *run_match(previous)]
    assert fake.calls("ListEvents")[0].body == (["a"], {"limit": ("u", 100), "kinds": ("as", ["run"])})


@pytest.mark.parametrize("daemon", [True, False])
def test_previous_by_the_journal_alone(cli: Cli, private_bus: str, journalctl: Path, daemon: bool) -> None:
    """Newest first, as journalctl -r has them; the events know one run at most."""
    lines = [f'{{"USER_INVOCATION_ID":"{run}"}}\n' for run in reversed(RUNS)]
    (journalctl / "json").write_text("".join(lines) + '{"__CURSOR":"x"}\n')
    if not daemon:
        assert asked(cli, "a", "--previous") == run_match(RUNS[1])
        return
    with FakeDaemon(private_bus) as fake:
        fake.add(model("a", InvocationID=RUNS[1]))
        assert asked(cli, "a", "--previous") == run_match(RUNS[0])


def test_previous_that_is_not_there(cli: Cli, fake: FakeDaemon, journalctl: Path) -> None:
    fake.add(model("a"), model("b"))
    assert cli.fails("logs", "a", "--previous") == "no run of a before this one is known"
    assert cli.fails("logs", "a", "b", "--previous", code=2) == "--previous takes one model"


def test_no_journalctl(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    cli.environment["PATH"] = "/nonexistent"
    error = cli.fails("logs", "a")
    assert "journal" in error


def machine(folder: Path, *files: str, mode: int = 0o644) -> Path:
    """A journal folder as journald lays it out."""
    inner = folder / ("f" * 32)
    inner.mkdir(parents=True)
    for name in files:
        (inner / name).touch(mode)
    return folder


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be read; the tests may run as root, whom no mode stops."""
    monkeypatch.setattr(os, "access", lambda *_: False)


def test_a_journal_of_ones_own(tmp_path: Path) -> None:
    own = f"user-{os.getuid()}.journal"
    folders = (machine(tmp_path / "log", own), tmp_path / "run")
    assert journal.unreadable(folders) is None
    assert journal.reading(folders) == "--user"


def test_the_systems_journal_beside_ones_own_is_read_too(tmp_path: Path) -> None:
    """There journald says what it has dropped."""
    own = f"user-{os.getuid()}.journal"
    folders = (machine(tmp_path / "log", "system.journal", own), tmp_path / "run")
    assert journal.reading(folders) == "--quiet"
    assert journal.flood([], folders) == ""


@pytest.mark.parametrize(("lines", "dropping"), [(9_000, False), (10_000, True)])
def test_a_flood_is_told_by_what_the_journal_took(
    cli: Cli, journalctl: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: int, dropping: bool
) -> None:
    text = "cortex-loud.service\n" * (lines - 10) + "cortex-quiet.service\n" * 10
    (journalctl / "taken").write_text(text)
    script = f'#!/bin/sh\ncase "$*" in *PRIORITY=6*) cat {journalctl}/taken;; esac\n'
    (journalctl / "journalctl").write_text(script)
    monkeypatch.setenv("PATH", cli.environment["PATH"])
    folders = (tmp_path / "log", tmp_path / "run")
    note = journal.flood(["cortex-other.service"], folders)
    assert (f"cortex-loud wrote {lines - 10} of the last {lines}" in note) == bool(note) == dropping
    assert ("'cortexctl set loud log_level=debug'" in note) == dropping
    # At debug it crowds out those alone that are there, too.
    (journalctl / "journalctl").write_text(script.replace("=6", "=7"))
    assert journal.flood(["cortex-other.service"], folders) == ""
    note = journal.flood(["cortex-quiet.service"], folders)
    assert bool(note) == dropping and "log_level" not in note


def test_the_system_journal_when_it_may_be_read(tmp_path: Path) -> None:
    folders = (tmp_path / "log", machine(tmp_path / "run", "system.journal"))
    assert journal.unreadable(folders) is None
    assert journal.reading(folders) == "--quiet"


@pytest.mark.usefixtures("denied")
def test_a_volatile_journal_that_may_not_be_read(tmp_path: Path) -> None:
    problem = journal.unreadable((tmp_path / "log", machine(tmp_path / "run", "system.journal")))
    assert problem is not None
    assert problem.startswith("the journal is volatile")
    assert "systemd-journal" in problem and "mkdir -p /var/log/journal" in problem


@pytest.mark.usefixtures("denied")
def test_a_persistent_journal_without_a_part_of_ones_own(tmp_path: Path) -> None:
    problem = journal.unreadable((machine(tmp_path / "log", "system.journal"), tmp_path / "run"))
    assert problem is not None
    assert problem.startswith("your user has no journal of its own yet")
    assert "systemd-journal" in problem


def test_no_journal_at_all(tmp_path: Path) -> None:
    problem = journal.unreadable((tmp_path / "log", tmp_path / "run"))
    assert problem == "there is no journal on this machine; is systemd-journald running?"


def test_the_last_lines_are_harmless_and_bounded(cli: Cli, journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (journalctl / "journalctl").write_text("#!/bin/sh\nprintf '\\033[31mred\\033[0m \\033]0;x\\007%5000d\\n' 1 2 3\n")
    monkeypatch.setenv("PATH", cli.environment["PATH"])
    lines = journal.tail("cortex-a.service", "", 10)
    assert len(lines) == 3
    assert all(line.startswith("red ") and line.isprintable() and len(line) < 2500 for line in lines)


def test_the_last_lines_are_those_of_the_run(cli: Cli, journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", cli.environment["PATH"])
    assert journal.tail("u", RUNS[0], 7)[-9:] == ["-n", "7", *run_match(RUNS[0])]
    assert journal.tail("u", "", 7)[-1] == "_TRANSPORT=stdout"
