"""The waiter as a unit runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortexd.scope import user_scope
from cortexd.units.tools import find_tools
from tests.support import unit_text
from tests.support.units import generate, make_program
from tests.waiter.servers import Notified, Wait


@pytest.fixture(scope="module")
def wait_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ExecStartPost= of a generated unit, with placeholders for what tests choose."""
    executable = make_program(tmp_path_factory.mktemp("bin") / "vllm")
    settings = {"path": "org/name", "exec": str(executable), "port": 4444}
    text = generate("waited-for", settings, scope=user_scope(os.environ), tools=find_tools("252")).text
    (command,) = unit_text.parse(text)["Service"]["ExecStartPost"]
    assert '"--port" "4444"' in command
    command = command.replace('"--timeout" "3600"', '"--timeout" "@TIMEOUT@"')
    assert '"--stall" "120" "--hint" %t/' in command
    return command.replace('"4444"', '"@PORT@"').replace('"120"', '"@STALL@"').replace("%t/", "@RUNTIME@/")


@pytest.fixture
def wait(wait_command: str, tmp_path: Path) -> Iterator[Wait]:
    wait = Wait(wait_command.replace("@RUNTIME@", str(tmp_path)), Notified(str(tmp_path / "notify")))
    yield wait
    wait.close()
