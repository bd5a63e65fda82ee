"""`cortexctl security` on the real manager: real sandboxes, with a real llama-server in the strict one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import systemctl
from tests.support.wait import until

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


def runtime_units() -> list[Path]:
    return [*Path(os.environ["XDG_RUNTIME_DIR"], "systemd", "user").glob("cortexd-check-*")]


def test_what_the_default_sandbox_prevents_here(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    rows = table(cortex, "--probe")
    effects = {directive: effect for directive, (_, effect, _) in rows.items()}
    assert {directive for directive, effect in effects.items() if effect == "in force"} >= {
        "PrivateUsers", "TemporaryFileSystem=%t", "InaccessiblePaths=~/.cortex", "NoNewPrivileges", "ProtectSystem",
        "ProtectHome", "PrivateTmp", "RestrictSUIDSGID", "ProtectControlGroups",
    }  # fmt: skip
    assert {effects[d] for d in ("RestrictRealtime", "ProtectKernelTunables")} == {"moot"}
    assert not set(effects.values()) & {"not in force", "unknown"}
    assert runtime_units() == []
    assert cortex.properties(NAME)["Warnings"] == []


def test_a_probe_takes_less_than_a_second(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    table(cortex)
    began = time.monotonic()
    table(cortex)  # kept: what the call and the program take
    kept = time.monotonic() - began
    began = time.monotonic()
    table(cortex, "--probe")
    assert time.monotonic() - began - kept < 1


def test_a_real_llama_server_lives_in_the_strict_one(cortex: Cortex) -> None:
    cortex.register_tiny(NAME, "--security", "strict", "--strict")
    rows = table(cortex)
    effects = {directive: effect for directive, (_, effect, _) in rows.items()}
    print(f"\nTABLE make test: {json.dumps(effects)}")  # for scripts/security_table.py
    strict = ("RestrictNamespaces", "RestrictAddressFamilies", "SystemCallFilter", "LockPersonality", "MemoryDenyWriteExecute",
              "ProtectClock", "UMask")  # fmt: skip
    assert {rows[name][1] for name in strict} == {"in force"}
    cortex.run("start", NAME)
    request = urllib.request.Request(
        cortex.properties(NAME)["URL"] + "/completion",
        json.dumps({"prompt": "a", "n_predict": 4}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["tokens_predicted"] == 4
    assert "healthy" in cortex.out("health", NAME)


def test_a_drop_in_that_opens_the_sandbox_is_seen(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    drop_ins = Path(cortex.properties(NAME)["FragmentPath"] + ".d")
    drop_ins.mkdir()
    try:
        (drop_ins / "open.conf").write_text("[Service]\nProtectHome=false\nProtectSystem=full\n")
        systemctl("daemon-reload")
        rows = table(cortex, status=1)
        assert rows["ProtectHome"] == ("read-only", "not in force", "the server could write to your home")
        (warning,) = cortex.properties(NAME)["Warnings"]
        assert warning == "sandbox: ProtectSystem, ProtectHome: not in force on this machine"
        cortex.run("set", NAME, "sandbox_required=yes")
        assert "sandbox_required=yes: ProtectSystem, ProtectHome: not in force here" in cortex.fails("start", NAME)
    finally:
        shutil.rmtree(drop_ins)
        systemctl("daemon-reload")
    cortex.run("start", NAME)


def test_none_has_nothing_and_says_so(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    done = cortex.run("set", NAME, "security=none")
    assert "its server has no sandbox, and can do whatever you can" in done.stderr
    assert {effect for _, effect, _ in table(cortex).values()} == {"off"}
    assert "its server has no sandbox" in cortex.run("status", NAME, check=False).stdout
    cortex.run("set", NAME, "security=baseline", "RestrictRealtime=no")
    asked = {name for name, (_, effect, _) in table(cortex).items() if effect != "off"}
    assert asked == {"NoNewPrivileges", "RestrictSUIDSGID"}


def test_a_daemon_that_is_killed_leaves_nothing_for_long(shared_daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    table(cortex)
    probe = subprocess.Popen(
        [sys.executable, "-m", "cortexctl", "security", NAME, "--probe"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        until(runtime_units, "a unit that tries the sandbox")
        shared_daemon.kill()
    finally:
        probe.communicate(timeout=30)
    shared_daemon.start()
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "cortexd-check-*").stdout
    until(lambda: not runtime_units(), "what was left to be removed")
    assert listed == ""
    assert table(cortex)["PrivateTmp"][1] == "in force"
