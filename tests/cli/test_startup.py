"""What the frequent verbs load: the modules are counted, since times vary from machine to machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.canned import model
from tests.cli.conftest import PROJECT, Cli
from tests.cli.fake_daemon import FakeDaemon

HEAVY = {
    "asyncio", "aiohttp", "rich", "dbus_next", "dbus_fast", "aiosqlite", "sqlite3", "ssl", "http", "urllib", "email",
    "logging", "subprocess", "shutil", "pathlib", "json", "dataclasses", "inspect", "tempfile", "random", "datetime",
    "difflib", "shlex", "importlib.metadata", "xml", "threading", "typing", "socket", "selectors", "contextlib", "jeepney",
    "cortexd.model", "cortexctl.diagnose",
}  # fmt: skip
"""What no frequent verb needs."""

MOST = 25
"""Modules beyond those of bare Python with argparse. Raise it with a reason."""

FREQUENT = [
    "status",
    "list",
    "is-active a",
    "is-enabled a",
    "url a",
    "start a --no-block",
    "stop a",
    "__complete names",
]


def loaded(command: list[str], cli: Cli) -> set[str]:
    """The modules that a program has when it ends; it prints them last, on standard error."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=cli.environment, cwd=PROJECT)
    return set(done.stderr.split())


@pytest.mark.parametrize("line", FREQUENT)
def test_frequent_verbs_load_little(cli: Cli, fake: FakeDaemon, line: str) -> None:
    fake.add(model("a", State="ready"))
    report = "print(*sys.modules, file=sys.stderr)"
    bare = loaded([sys.executable, "-c", f"import sys, argparse; {report}"], cli)
    program = f"import sys; from cortexctl.main import run; run({line.split()!r}, 'cortexctl'); {report}"
    modules = loaded([sys.executable, "-c", program], cli) - bare
    assert "cortexd.decoding" in modules, "the program did its work"
    assert not {module for module in modules if any(module == h or module.startswith(h + ".") for h in HEAVY)}
    assert len(modules) <= MOST, sorted(modules)
