"""The same values through the real manager: whole generated units, sandbox and all, that run and tell what they got."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cortexd.errors import CortexError
from cortexd.names import unit_name
from tests.hostile.values import TEXTS
from tests.support.units import Generated, UnitLab, systemctl
from tests.support.wait import until

UNITS = 200
RECORD = """#!/bin/sh
cat /proc/$$/cmdline >"{out}/$X_ID.argv" && cat /proc/$$/environ >"{out}/$X_ID.environ.part" && mv "{out}/$X_ID.environ.part" "{out}/$X_ID.environ"
"""

WORDS = TEXTS.filter(bool)
CASES = st.tuples(
    st.lists(WORDS, min_size=1, max_size=3),
    st.dictionaries(st.from_regex(r"X_[A-C][a-z]{0,3}", fullmatch=True), WORDS, max_size=3),
)


@pytest.fixture
def lab() -> Iterator[UnitLab]:
    folder = Path.home() / "hostile-lab"
    folder.mkdir()
    lab = UnitLab(folder)
    lab.server.write_text(RECORD.format(out=folder / "out"))
    (folder / "out").mkdir()
    yield lab
    lab.close()


def drawn(lab: UnitLab) -> list[Generated]:
    """Units whose values were accepted."""
    made: list[Generated] = []

    # More than are kept: about half of what is drawn is refused, which the pure test looks at.
    @settings(
        max_examples=UNITS * 8,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES)
    def draw(case: tuple[list[str], dict[str, str]]) -> None:
        words, variables = case
        if len(made) >= UNITS:
            return
        number = len(made)
        env = [f"X_ID={number}", *(f"{name}={value}" for name, value in variables.items())]
        given: dict[str, object] = {"extra_args": shlex.join(["--x", *words]), "env": env, "ReadWritePaths": [str(lab.folder / "out")], "Restart": "no"}  # fmt: skip
        try:
            made.append(lab.define(f"hostile-{number}", reload=False, **given))
        except CortexError:
            return

    draw()
    return made


def test_two_hundred_units_start_with_exactly_what_was_given(lab: UnitLab) -> None:
    made = drawn(lab)
    assert len(made) == UNITS
    units = [unit_name(each.spec.name) for each in made]
    paths = [str(lab.scope.unit_folder / unit) for unit in units]
    verified = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", *paths], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    systemctl("daemon-reload")
    for first in range(0, UNITS, 50):
        # Their waiters fail, since a recorder serves nothing: that it ran is seen by what it wrote.
        systemctl("start", *units[first : first + 50], check=False)
    for number, each in enumerate(made):
        out = lab.folder / "out" / f"{number}.environ"
        until(out.exists, f"what unit {number} tells")
        argv = (lab.folder / "out" / f"{number}.argv").read_bytes().split(b"\0")[:-1]
        assert argv[1:] == [os.fsencode(word) for word in each.plan.argv]  # the shell comes first
        told = dict(item.split(b"=", 1) for item in out.read_bytes().split(b"\0")[:-1])
        wanted = {**each.plan.environment, **dict(item.split("=", 1) for item in each.spec.env)}
        assert {name: told.get(os.fsencode(name)) for name in wanted} == {k: os.fsencode(v) for k, v in wanted.items()}
