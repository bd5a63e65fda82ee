"""Links on the way to what a model may see and write: they open nothing that is closed by its own name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import intruder
from tests.hostile.test_intruder import SECRET
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import free_port, make_program, systemctl
from tests.support.wait import until


class House:
    """A victim with a secret, and folders for a thief, which is a hostile model server."""

    def __init__(self) -> None:
        self.cortex, self.folder = Cortex(), Path.home() / "links"
        self.program = make_program(self.folder / "llama-server", Path(intruder.__file__))
        (self.folder / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
        self.own = self.folder / "own"
        self.own.mkdir()

    def register(self, name: str, *more: str) -> str:
        """What it said against it; empty where nothing."""
        done = self.cortex.run(
            "register", name, "--path", str(self.folder / "model.gguf"), "--backend", "llamacpp", "--exec", str(self.program),
            "--gpus", "none", "--memory", "1G", "--port", str(free_port()), *more, check=False,
        )  # fmt: skip
        return done.stderr if done.returncode else ""

    def thief(self, *folders: Path) -> str:
        """A model that may write these and its own folder, and makes the attempts that lie there."""
        written = " ".join(map(str, (self.own, *folders)))
        return self.register(
            "thief", "--set", f"ReadWritePaths={written}", f"--extra-args=--attempts {self.own}/do.json"
        )

    def attempts(self, **wanted: list[str]) -> None:
        (self.own / "do.out").unlink(missing_ok=True)
        (self.own / "do.json").write_text(json.dumps(wanted))

    def found(self) -> dict[str, str]:
        """Why each failed, once the server has made them; empty where it succeeded."""
        until((self.own / "do.out").exists, "the attempts")
        return dict(json.loads((self.own / "do.out").read_text()))


@pytest.fixture
def house(shared_daemon: Daemon) -> Iterator[House]:
    house = House()
    assert not house.register("victim")
    command = [sys.executable, "-m", "cortexctl", "secret", "set", "victim", "X_SECRET"]
    subprocess.run(command, input=SECRET.encode(), check=True, capture_output=True, cwd=lab.PROJECT)
    yield house
    house.cortex.run("unregister", "--force", "*", check=False)
    shutil.rmtree(house.folder)


@pytest.mark.parametrize("place", [Path("/tmp"), Path.home()], ids=["tmp", "home"])
@pytest.mark.parametrize("to", [".cortex", "", ".config/systemd", ".config/cortex/backends"])
def test_an_alias_of_what_is_closed_is_refused_by_both_names(house: House, place: Path, to: str) -> None:
    alias = place / "alias"
    alias.symlink_to(Path.home() / to)
    try:
        assert "would open" in house.thief(alias)
        assert not house.thief()
        said = house.cortex.fails("set", "thief", f"ReadWritePaths={house.own} {alias}")
        assert "would open" in said
    finally:
        alias.unlink()


@pytest.mark.parametrize("place", [Path("/tmp"), Path.home()], ids=["tmp", "home"])
def test_a_link_that_is_made_later_is_seen_at_a_start_and_not_followed_without_one(house: House, place: Path) -> None:
    later, secrets = place / "later", Path.home() / ".cortex" / "secrets" / "victim" / "environment"
    later.mkdir()
    try:
        assert not house.thief(later)
        house.attempts(write=["write", f"{later}/x"])
        house.cortex.run("start", "thief")
        assert house.found() == {"write": ""}
        house.cortex.run("stop", "thief")
        later.rmdir()
        later.symlink_to(Path.home() / ".cortex")
        assert "would open" in house.cortex.fails("start", "thief")
        house.attempts(
            direct=["read", str(secrets), SECRET], linked=["read", f"{later}/secrets/victim/environment", SECRET]
        )
        assert systemctl("start", "cortex-thief.service", check=False).returncode  # systemd by itself
        assert not (house.own / "do.out").exists()
    finally:
        later.unlink() if later.is_symlink() else later.rmdir()


def test_a_server_cannot_lead_its_own_folder_elsewhere(house: House) -> None:
    """Neither to what is ours nor to what else of the user's home would run later outside."""
    inner, ssh = house.own / "inner", Path.home() / ".ssh"
    ssh.mkdir(exist_ok=True)
    assert not house.thief(inner)
    plant = f"cd {house.own} && rmdir inner && ln -s {ssh} inner"
    house.attempts(plant=["run", plant], key=["write", f"{inner}/authorized_keys"])
    house.cortex.run("start", "thief")
    found = house.found()
    assert found["plant"] == "" and found["key"]  # its folder is its own, and what it links to is closed
    house.cortex.run("stop", "thief")
    house.attempts(key=["write", f"{inner}/authorized_keys"])
    assert systemctl("start", "cortex-thief.service", check=False).returncode
    said = house.cortex.fails("start", "thief")
    assert f"the server may write where {inner} lies, which is a link to {ssh}; remove that link" in said
    assert not (house.own / "do.out").exists()


def test_a_link_of_the_users_own_is_followed_by_both_names(house: House) -> None:
    """A cache on another disk."""
    disk = Path.home() / "disk"
    disk.mkdir()
    links = [Path("/tmp/cache"), Path.home() / "cache"]
    for link in links:
        link.symlink_to(disk)
    try:
        assert not house.thief(*(link / "models" for link in links))
        house.attempts(**{str(at): ["write", f"{at}/models/x"] for at in (*links, disk)}, beside=["write", f"{disk}/x"])
        house.cortex.run("start", "thief")
        found = house.found()
        assert found.pop("beside")
        assert found == {str(at): "" for at in (*links, disk)}
    finally:
        for link in links:
            link.unlink()
        shutil.rmtree(disk)
