"""The same values through the real manager: whole generated units, sandbox and all, that run and tell what they got."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cortexctl.doctor.look_files import given_to_verify
from cortexd.definitions import Definer
from cortexd.errors import CortexError, InvalidConfig
from cortexd.kinds import has_control
from cortexd.model import parse_settings
from cortexd.names import check_name, unit_name
from cortexd.registered import Definition
from cortexd.registration import Caller, fill_in
from cortexd.units import files
from tests.hostile.values import NASTY
from tests.support.units import UnitLab, free_port, systemctl
from tests.support.wait import until

UNITS = 220
# What it may write is open to it by ReadWritePaths= alone.
RECORD = """#!/bin/sh
: >"$X_FOLDER/written"
cat /proc/$$/cmdline >"{out}/$X_ID.argv" && cat /proc/$$/environ >"{out}/$X_ID.part" && mv "{out}/$X_ID.part" "{out}/$X_ID.environ"
"""
LONGEST = 131_071
"""Bytes of an argument or variable (MAX_ARG_STRLEN of execve(2), with the NUL at its end)."""

# What no setting may have is refused, which the pure test looks at: here as much as can be is to run.
PIECES = st.one_of(st.sampled_from([piece for piece in NASTY if not has_control(piece)]), st.text(max_size=3))
TEXTS = st.lists(PIECES, min_size=1, max_size=5).map("".join).filter(lambda text: not has_control(text))
FILE_NAMES = TEXTS.map(lambda text: text.replace("/", ""))
HOSTS = ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "fe80::1%lo", "unix:{out}/@a:+b-_.sock", "unix:{out}/socket"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.one_of(st.from_regex(r"[A-Za-z0-9._:-]{1,50}", fullmatch=True), FILE_NAMES),
    "path": FILE_NAMES,
    "exec": FILE_NAMES,
    "folder": FILE_NAMES,
    "words": st.lists(TEXTS, min_size=1, max_size=3),
    "variables": st.dictionaries(st.from_regex(r"X_[A-C][a-z]{0,3}", fullmatch=True), TEXTS, min_size=1, max_size=3),
}
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "host": st.sampled_from(HOSTS),
    # Three of four have no program that waits for them, which takes most of the time.
    "endpoint": st.sampled_from(["none"] * 6 + ["/health", '/%n"$$;%20\\x41?a=%7Bb%7D']),
}
# In most cases one is hostile, since a refusal of one hides what becomes of the others.
CASES = st.one_of(
    *(st.fixed_dictionaries({key: value, **OTHERS}) for key, value in VALUES.items()),
    st.fixed_dictionaries(VALUES | OTHERS),
)


class World:
    """Files that are there under any name, and units of models that use them."""

    def __init__(self, lab: UnitLab) -> None:
        self.lab, self.out = lab, lab.folder / "out"
        self.out.mkdir()
        self.definer = Definer(lab.scope, lab.tools)
        self.made: list[Definition] = []

    def make(self, name: str, *, path: str, program: str, folder: str, env: list[str], **given: object) -> Definition:
        """One unit, on disk. Raises CortexError where a value is refused, and OSError where no file can have such a name."""
        number = len(self.made)
        check_name(name)
        model, written = self.lab.folder / f"{number:03}{path}.gguf", self.lab.folder / f"{number:03}{folder}"
        executable = self.lab.folder / f"{number:03}bin" / f"{program}llama-server"
        executable.parent.mkdir(exist_ok=True)
        written.mkdir(parents=True, exist_ok=True)
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(b"GGUF" + bytes(60))
        executable.write_text(RECORD.format(out=self.out))
        executable.chmod(0o755)
        wanted: dict[str, object] = {
            "path": str(model), "exec": str(executable), "backend": "llamacpp", "port": free_port(), "gpus": "none", "memory": "1G",
            "env": [f"X_ID={number}", f"X_FOLDER={written}", *env], "ReadWritePaths": [str(self.out), str(written)],
            "Restart": "no", "health.startup_timeout_seconds": 20, **given,
        }  # fmt: skip
        explicit = fill_in(parse_settings(wanted), {}, Caller(), self.lab.scope, [])
        made = self.definer.define(name, explicit)
        (self.lab.scope.unit_folder / unit_name(name)).write_text(made.text)
        self.lab.names.append(name)
        self.made.append(made)
        return made

    def told(self, number: int) -> tuple[list[bytes], dict[bytes, bytes]]:
        """What the server of that number got."""
        environ = self.out / f"{number}.environ"
        until(environ.exists, f"what unit {number} tells")
        argv = (self.out / f"{number}.argv").read_bytes().split(b"\0")[:-1]
        pairs = [item.split(b"=", 1) for item in environ.read_bytes().split(b"\0")[:-1]]
        return argv[1:], dict(pairs)  # the shell comes first


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path.home() / "hostile-lab"
    folder.mkdir()
    lab = UnitLab(folder)
    yield World(lab)
    for path in lab.scope.backend_folders[0].glob("odd*.toml"):
        path.unlink()
    lab.close()


def draw(world: World) -> None:
    """Units whose values were accepted."""
    seen = Counter[str]()

    # More than are kept: a name has few characters, and a program's path none that would be quoted.
    @settings(max_examples=UNITS * 4, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(CASES)
    def one(case: dict[str, Any]) -> None:
        number = len(world.made)
        if number >= UNITS:
            return
        try:
            world.make(
                f"{number:03}{case.get('name', '')}",  # as long for all, so that no two are the same
                path=case.get("path", ""),
                program=case.get("exec", ""),
                folder=case.get("folder", ""),
                env=[f"{name}={text}" for name, text in case.get("variables", {}).items()],
                extra_args=shlex.join(["--x", *case.get("words", [])]),
                host=case["host"].format(out=world.out),
                **{"health.endpoint": case["endpoint"]},
            )
        except (CortexError, OSError):
            return
        seen.update(case.keys())

    one()
    assert len(world.made) == UNITS
    assert min(seen[key] for key in VALUES) >= UNITS // 20, seen


def draw_long(world: World) -> None:
    """A file with a path as long as there are any, and an argument and a variable as long as execve(2) takes them; one byte
    more is refused."""
    deep = "/".join(["d" * 200 + "%$ é"] * 16)
    backends = world.lab.scope.backend_folders[0]
    backends.mkdir(parents=True, exist_ok=True)
    size = len(os.fsencode(f"{world.lab.folder}/{len(world.made):03}{deep}.gguf"))
    times = LONGEST // size
    for more, kind in ((0, "word"), (0, "variable"), (1, "word"), (1, "variable")):
        rest = LONGEST - times * size + more - (len("X_OWN=") if kind == "variable" else 0)
        long, short = "\\\\" * (rest // 2) + '\\"' * (rest - rest // 2) + "{path}" * times, "{path}"
        word, variable = (long, short) if kind == "word" else (short, long)
        text = f'description = "long"\nexecutables = ["llama-server"]\ncommand = ["{{exec}}", "{word}", "{{port}}"]\nendpoint = "/health"\n'
        (backends / f"odd{kind}.toml").write_text(f'{text}[environment]\nX_OWN = "{variable}"\n')
        given: dict[str, object] = {"backend": f"odd{kind}", "health.endpoint": "none"}
        if more:
            with pytest.raises(InvalidConfig, match=f"is longer than the {LONGEST} bytes"):
                world.make("long", path=deep, program="", folder="", env=[], **given)
            continue
        made = world.make(f"long-{kind}", path=deep, program="", folder="", env=[], **given)
        sizes = [
            len(os.fsencode(w)) for w in (*made.plan.argv, *(f"{k}={v}" for k, v in made.plan.environment.items()))
        ]
        assert max(sizes) == LONGEST


def test_two_hundred_units_start_with_exactly_what_was_given(world: World) -> None:
    world.make("harmless", path="", program="", folder="", env=[])
    draw(world)
    draw_long(world)
    units = [unit_name(each.spec.name) for each in world.made]
    with given_to_verify([world.lab.scope.unit_folder / unit for unit in units]) as words:
        verify = ["systemd-analyze", "--user", "--man=no", "verify", *words]
        verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    systemctl("daemon-reload")
    shown = systemctl("show", "--property=Description", *units).stdout.split("\n\n")
    assert [text.strip() for text in shown] == [f"Description=Cortex Model: {each.spec.name}" for each in world.made]
    for first in range(0, len(units), 50):
        # The waiters fail, since a recorder serves nothing: that it ran is seen by what it wrote.
        systemctl("start", *units[first : first + 50], check=False)
    _, ours = world.told(0)
    for number, each in enumerate(world.made):
        argv, environment = world.told(number)
        assert argv == [os.fsencode(word) for word in each.plan.argv]
        wanted = {**each.plan.environment, **dict(item.split("=", 1) for item in each.spec.env)}
        assert {k: environment.get(os.fsencode(k)) for k in wanted} == {k: os.fsencode(v) for k, v in wanted.items()}
        assert environment.keys() - set(map(os.fsencode, wanted)) <= ours.keys()
        assert (Path(wanted["X_FOLDER"]) / "written").exists()
        assert (files.settings_in(each.text) or {})["path"] == each.spec.path
