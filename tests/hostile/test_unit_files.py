"""Something else in the place of a unit's file or drop-in: systemd is kept from it, or freed, and no other model is harmed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cortexd.names import FOLDER_TEMPLATE
from cortexd.scope import user_scope
from tests.hostile.faults import lay
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import systemctl
from tests.support.wait import until

UNITS = user_scope(os.environ).unit_folder
SICK = UNITS / "cortex-sick.service"
DROP_IN = UNITS / "cortex-sick.service.d" / "x.conf"
MANAGER = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]


@pytest.fixture(scope="module")
def models(shared_daemon: Daemon) -> Cortex:
    """A model whose unit file is to suffer, and one beside it."""
    cortex = Cortex()
    for name in ("sick", "well"):
        cortex.register_tiny(name)
    return cortex


def answers() -> bool:
    """Whether systemd does. It is not asked for long: that it does not answer is what is looked at."""
    ask = ["timeout", "1", "busctl", "--user", "get-property", *MANAGER, "Version"]
    return subprocess.run(ask, check=False, capture_output=True).returncode == 0


@contextmanager
def hanging(*call: str) -> Iterator[None]:
    """systemd, made to read what it should not."""
    with subprocess.Popen(
        ["busctl", "--user", "call", *MANAGER, *call], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ):
        until(lambda: not answers(), "the manager's hanging")
        yield


@pytest.mark.parametrize("fault", ["garbage", "link", "dangling link", "fifo", "folder", "closed", "huge"])
def test_a_unit_file_that_systemd_cannot_load_is_named_and_harms_no_other_model(
    models: Cortex, fault: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("canary")
    good = SICK.read_bytes()
    lay(SICK, fault, good, elsewhere)
    try:
        for command in (["start", "sick"], ["set", "sick", "CPUWeight=50"]):
            assert str(SICK) in models.fails(*command)
        done = models.run("status", "sick", check=False)
        assert str(SICK) in done.stdout + done.stderr
        assert answers() and elsewhere.read_text() == "canary" and [*tmp_path.iterdir()] == [elsewhere]
        models.run("start", "well")
        models.run("stop", "well")
    finally:
        lay(SICK, "read-only", good, elsewhere)
    systemctl("daemon-reload")
    models.run("start", "sick")
    models.run("stop", "sick")


@pytest.fixture
def drop_in(request: pytest.FixtureRequest) -> Iterator[Path]:
    """One of that name, which is there no longer afterwards, nor its folder."""
    path: Path = UNITS / request.param
    path.parent.mkdir()
    yield path
    shutil.rmtree(path.parent)
    systemctl("daemon-reload")


@pytest.mark.parametrize(
    ("drop_in", "fault"),
    [
        ("cortex-sick.service.d/x.conf", "fifo"),
        ("cortex-.service.d/x.conf", "fifo"),
        ("service.d/x.conf", "huge"),
        ("cortex.slice.d/x.conf", "device"),
        (f"{FOLDER_TEMPLATE}.d/x.conf", "fifo"),
    ],
    indirect=["drop_in"],
)
def test_systemd_is_asked_for_nothing_for_which_it_would_read_such_a_drop_in(
    models: Cortex, drop_in: Path, fault: str
) -> None:
    if fault == "device":
        drop_in.symlink_to("/dev/zero")
    else:
        lay(drop_in, fault, b"", drop_in)
    for command in (
        ["start", "sick"],
        ["enable", "sick"],
        ["set", "sick", "CPUWeight=50"],
        ["security", "sick", "--probe"],
    ):
        assert f"{drop_in} is no unit file" in models.fails(*command)
    assert answers()


@pytest.mark.parametrize("drop_in", ["cortex-sick.service.d/x.conf"], indirect=True)
def test_what_runs_can_be_stopped_and_what_is_harmless_is_let_be(models: Cortex, drop_in: Path) -> None:
    models.run("start", "sick")
    lay(drop_in, "fifo", b"", drop_in)
    models.run("stop", "sick")
    drop_in.unlink()
    for harmless in ("/dev/null", "/no/such/file"):
        drop_in.symlink_to(harmless)
        systemctl("daemon-reload")
        models.run("start", "sick")
        models.run("stop", "sick")
        drop_in.unlink()


@pytest.mark.parametrize("drop_in", ["cortex-sick.service.d/x.conf"], indirect=True)
def test_a_daemon_starts_all_the_same_and_says_so(shared_daemon: Daemon, models: Cortex, drop_in: Path) -> None:
    shared_daemon.kill()
    lay(drop_in, "fifo", b"", drop_in)
    (UNITS / "cortex-well.service").unlink()  # which is written again, and read
    shared_daemon.start()
    said = json.loads(models.run("doctor", "--json", check=False).stdout)
    (warning,) = [row["text"] for row in said if row["check"] == "daemon-warning" and str(drop_in) in row["text"]]
    assert "would keep your systemd manager from working" in warning and answers()


@pytest.mark.parametrize("drop_in", ["cortex-sick.service.d/x.conf"], indirect=True)
def test_doctor_frees_a_manager_that_hangs(models: Cortex, drop_in: Path) -> None:
    """Whoever made it read that: `systemctl daemon-reload`, or a start by hand."""
    for path in (drop_in, drop_in.with_name("y.conf")):
        os.mkfifo(path)
    with hanging("StartUnit", "ss", SICK.name, "replace"):
        rows = json.loads(models.run("doctor", "--json", check=False).stdout)
        (found,) = [row for row in rows if row["check"] == "obstacle"]
        assert found["level"] == "error" and found["fixable"] and f"{drop_in}, " in found["text"]
        assert "manager" in {row["check"] for row in rows if row["level"] == "error"}
        done = models.run("doctor", "--fix", "--yes", check=False)
        assert f"done: Put {drop_in}, {drop_in.with_name('y.conf')} aside" in done.stderr
        assert answers()
    kept = sorted(drop_in.parent.iterdir())
    assert [path.name.partition(".kept-")[0] for path in kept] == ["x.conf", "y.conf"]
    for path in kept:
        assert stat.S_ISFIFO(path.stat().st_mode)
        path.unlink()
    models.run("stop", "sick")  # what was asked for by hand is done


def test_repair_frees_a_manager_that_hangs(models: Cortex) -> None:
    SICK.unlink()
    os.mkfifo(SICK)
    with hanging("GetUnitFileState", "s", SICK.name):
        models.run("repair", "sick", "--yes")
        assert answers()
    (kept,) = UNITS.glob("cortex-sick.service.kept-*")
    kept.unlink()
    models.run("start", "sick")
    models.run("stop", "sick")
