"""`cortexctl security` on the real manager: real sandboxes, with a real llama-server in the strict one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon

NAME = "proved"


@pytest.fixture
def cortex(shared_daemon: Daemon) -> Iterator[Cortex]:
    """The command line; the model is gone afterwards."""
    client = Cortex()
    yield client
    client.run("unregister", "--force", NAME, check=False)


def table(cortex: Cortex, *options: str, status: int = 0) -> dict[str, tuple[str, str, str]]:
    """Requested, effect and why, by directive."""
    done = cortex.run("security", NAME, "--json", *options, check=False)
    assert (done.returncode, done.stderr) == (status, ""), done
    (found,) = json.loads(done.stdout)
    return {row["directive"]: (row["requested"], row["effect"], row["why"]) for row in found["directives"]}


def test_default(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    began = time.monotonic()
    rows = table(cortex, "--probe")
    took = time.monotonic() - began
    for k, v in rows.items():
        print(k, v)
    print(took)
    assert 0


def test_strict(cortex: Cortex) -> None:
    cortex.register_tiny(NAME, "--security", "strict")
    for k, v in table(cortex).items():
        print(k, v)
    cortex.run("start", NAME)
    print(cortex.out("cat", NAME))
    print(cortex.properties(NAME)["Warnings"])
    assert 0
