"""Round trips through the real manager: what is quoted into a unit comes out of it as it was, in argv and over D-Bus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cortexd.errors import InvalidConfig
from cortexd.scope import user_scope
from cortexd.units import quoting
from tests.support.units import systemctl

UNITS, BATCH = 150, 50

NASTY = ['"', "'", "\\", "%", "$", "${", "}", ";", "\n", "\t", "\r", " ", "#", "=", ":", "@", "-", "+", "!", "|", "%n",
         "%%", "$$", "\\n", "\\x41", "\\", "\x01", "\x1b", "\x7f", "\x85", "\xa0", "é", "世", "🦙", "\u200b", "\u2028", "~"]  # fmt: skip
CHARACTERS = st.characters(blacklist_categories=["Cs", "Cn"], blacklist_characters="\0")
WORDS = st.one_of(
    st.lists(st.sampled_from(NASTY), max_size=12).map("".join),
    st.text(CHARACTERS, max_size=20),
    st.lists(st.one_of(st.sampled_from(NASTY), st.text(CHARACTERS, max_size=3)), max_size=8).map("".join),
)
NAMES = st.from_regex(r"X_[A-Za-z0-9_]{1,8}", fullmatch=True)
# As settings have them: absolute, no control characters, no "..", no doubled or final slash.
PARTS = st.text(
    st.characters(blacklist_categories=["Cs", "Cn", "Cc"], blacklist_characters="/"), min_size=1, max_size=12
)
PATHS = (
    st.lists(st.one_of(PARTS, st.sampled_from(['a"b', "a'b", "a\\b", "a b", "%t", "a:b", "$x", " ", "ü"])), min_size=1, max_size=4)
    .filter(lambda parts: not {".", ".."} & set(parts))
    .map(lambda parts: "/" + "/".join(parts))
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What one unit is to run."""

    argv: list[str]
    expanded: list[str]
    environment: dict[str, str]
    paths: list[str]


COMMANDS = st.builds(
    Command,
    argv=st.lists(WORDS, min_size=3, max_size=6),
    expanded=st.lists(WORDS, min_size=2, max_size=4),
    environment=st.dictionaries(NAMES, WORDS, min_size=2, max_size=4),
    paths=st.lists(PATHS, min_size=1, max_size=3, unique=True),
)

# What arrived, as bytes: no codec has a say in it.
DUMP = """
import json, os, sys
def read(path): return [part.hex() for part in open(path, "rb").read().split(b"\\0")[:-1]]
part = sys.argv[1] + ".part"
json.dump({"argv": read("/proc/self/cmdline"), "environ": read("/proc/self/environ")}, open(part, "w"))
os.replace(part, sys.argv[1])
"""


class Batch:
    """Many units, one reload."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.units = folder, user_scope(os.environ).unit_folder
        self.script = folder / "dump.py"
        self.script.write_text(DUMP)
        self.seen = 0

    def command(self, out: Path) -> list[str]:
        return [sys.executable, "-I", "-S", str(self.script), str(out)]

    def text(self, number: int, command: Command) -> str:
        """A unit as render.py would put these into it."""
        first, second = (self.command(self.folder / f"{number}.{step}") for step in ("start", "post"))
        lines = ["ExecStart=:" + " ".join(map(quoting.word, [*first, *command.argv])),
                 "ExecStartPost=" + " ".join(map(quoting.expanded_word, [*second, *command.expanded]))]  # fmt: skip
        lines += [f"Environment={quoting.word(f'{name}={value}')}" for name, value in command.environment.items()]
        lines += [f"ReadWritePaths=-{quoting.path(path)}" for path in command.paths]
        lines += [f"BindReadOnlyPaths=-{quoting.path(path)}" for path in command.paths]
        lines += [f"InaccessiblePaths=-{quoting.path(path)}" for path in command.paths]
        return "[Service]\nType=oneshot\n" + "\n".join(lines) + "\n"

    def run(self, commands: list[Command]) -> None:
        names = [f"quoting-{number}.service" for number in range(len(commands))]
        self.clear()
        for number, command in enumerate(commands):
            (self.units / names[number]).write_text(self.text(number, command))
        systemctl("daemon-reload")
        described = [self.describe(name) for name in names]
        for name in names:  # what they may see is not the question here: these have no sandbox to run in
            folder = self.units / f"{name}.d"
            folder.mkdir(exist_ok=True)
            (folder / "open.conf").write_text("[Service]\nReadWritePaths=\nBindReadOnlyPaths=\nInaccessiblePaths=\n")
        systemctl("daemon-reload")
        systemctl("start", *names)
        for number, (command, found) in enumerate(zip(commands, described, strict=True)):
            self.check_described(number, command, found)
            self.check_arrived(number, command)
            self.seen += 1

    def describe(self, name: str) -> dict[str, Any]:
        """What the manager read."""
        path = "/org/freedesktop/systemd1/unit/" + name.replace("-", "_2d").replace(".", "_2e")
        call = ["busctl", "--user", "--json=short", "call", "org.freedesktop.systemd1", path]
        call += ["org.freedesktop.DBus.Properties", "GetAll", "s", "org.freedesktop.systemd1.Service"]
        # GetAll loads the unit, as Get does.
        found = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)["data"][0]
        return {key: value["data"] for key, value in found.items()}

    def check_described(self, number: int, command: Command, found: dict[str, Any]) -> None:
        start, post = (self.command(self.folder / f"{number}.{step}") for step in ("start", "post"))
        assert found["ExecStart"][0][1] == [*start, *command.argv]
        # The property holds it as it is before $ is expanded.
        assert found["ExecStartPost"][0][1] == [*post, *(word.replace("$", "$$") for word in command.expanded)]
        assert sorted(found["Environment"]) == sorted(f"{k}={v}" for k, v in command.environment.items())
        assert found["ReadWritePaths"] == [f"-{path}" for path in command.paths]
        assert found["InaccessiblePaths"] == [f"-{path}" for path in command.paths]
        assert [(source, target) for source, target, _, _ in found["BindReadOnlyPaths"]] == [
            (path, path) for path in command.paths
        ]

    def check_arrived(self, number: int, command: Command) -> None:
        for step, words in (("start", command.argv), ("post", command.expanded)):
            out = self.folder / f"{number}.{step}"
            arrived = json.loads(out.read_text())
            out.unlink()
            assert [bytes.fromhex(word).decode() for word in arrived["argv"]] == [*self.command(out), *words]
            pairs = (bytes.fromhex(word).decode().partition("=") for word in arrived["environ"])
            environment = {name: value for name, _, value in pairs if name.startswith("X_")}
            assert environment == command.environment

    def clear(self) -> None:
        for path in self.units.glob("quoting-*.service*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        self.clear()
        systemctl("daemon-reload")
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def batch() -> Iterator[Batch]:
    folder = Path.home() / "quoting"
    folder.mkdir()
    (Path.home() / ".config/systemd/user").mkdir(parents=True, exist_ok=True)
    batch = Batch(folder)
    yield batch
    batch.close()


def test_what_arrives_is_what_was_given(batch: Batch) -> None:
    """Units with several arguments, environment values and paths each."""
    commands: list[Command] = []

    # Only drawn here, so that a reload serves many.
    @settings(max_examples=UNITS, phases=[Phase.generate], deadline=None, database=None)
    @given(COMMANDS)
    def draw(command: Command) -> None:
        commands.append(command)

    draw()
    assert len(commands) >= 100
    for first in range(0, len(commands), BATCH):
        batch.run(commands[first : first + BATCH])
    assert batch.seen >= len(commands)


def test_the_nasty_ones_alone_and_together(batch: Batch) -> None:
    everything = "".join(NASTY)
    alone = Command([*NASTY, "", everything], [*NASTY, ""], {"X_all": everything, "X_empty": ""}, ["/a b", "/a:b"])
    batch.run([alone, Command([everything] * 3, [everything], {f"X_{i}": c for i, c in enumerate(NASTY)}, ["/x"])])


def test_nul_is_refused() -> None:
    for quote in (quoting.word, quoting.expanded_word, quoting.path):
        with pytest.raises(InvalidConfig, match=r"NUL|control character"):
            quote("/a\0b")


@pytest.mark.parametrize("character", ["\n", "\t", "\x01", "\x7f"])
def test_a_path_with_a_control_character_is_refused(character: str) -> None:
    with pytest.raises(InvalidConfig, match=r"control character.*rename"):
        quoting.path(f"/a{character}b")


@settings(max_examples=10, deadline=None, database=None)
@given(st.lists(PATHS, min_size=30, max_size=30))
def test_the_instance_of_a_path_is_systemds(paths: list[str]) -> None:
    tool = subprocess.run(
        ["systemd-escape", "--path", "--", *paths], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert [quoting.instance_of_path(path) for path in paths] == tool.stdout.split()


@pytest.mark.parametrize(
    ("path", "instance"),
    [
        ("/", "-"),
        ("//", "-"),
        ("/a//b/", "a-b"),
        ("/.cache", "\\x2ecache"),
        ("/a/.cache", "a-.cache"),
        ("/a-b", "a\\x2db"),
    ],
)
def test_instances(path: str, instance: str) -> None:
    assert quoting.instance_of_path(path) == instance


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0, "0"), (10, "10"), (10.0, "10"), (100.0, "100"), (0.5, "0.5"), (0.001, "0.001"), (3630.0, "3630"),
     (604800.0, "604800"), (90.25, "90.25"), (1.0004, "1")],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert quoting.seconds(value) == text


def test_booleans() -> None:
    assert (quoting.boolean(True), quoting.boolean(False)) == ("true", "false")
