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
from tests.support.units import properties, systemctl
from tests.support.wait import until

NAME = "proved"
READ, WROTE = 1, 2


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


def drop_in(cortex: Cortex, *text: str) -> None:
    """The one drop-in of the model; none where there is no text."""
    folder = Path(cortex.properties(NAME)["FragmentPath"] + ".d")
    shutil.rmtree(folder, ignore_errors=True)
    if text:
        folder.mkdir()
        (folder / "mine.conf").write_text("".join(text))
    systemctl("daemon-reload")


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_what_the_sandbox_prevents_here(cortex: Cortex, profile: str) -> None:
    cortex.register_tiny(NAME, "--security", profile)
    rows = table(cortex, "--probe")
    print(f"\nTABLE make test, {profile}: {json.dumps(rows)}")  # for scripts/security_table.py
    effects = {directive: effect for directive, (_, effect, _) in rows.items()}
    force = {directive for directive, effect in effects.items() if effect == "in force"}
    assert force >= {"TemporaryFileSystem=/run", "InaccessiblePaths=~/.cortex", "InaccessiblePaths=/dev/pts", "PrivateTmp", "RestrictSUIDSGID",
                     "ProtectControlGroups", "NoNewPrivileges", "ProtectHome", "ProtectSystem"}  # fmt: skip
    assert effects["PrivateUsers"] in ("in force", "covered")  # the others imply it from 254 on
    assert {effects[d] for d in ("RestrictRealtime", "ProtectKernelTunables")} == {"moot"}
    assert not set(effects.values()) & {"not in force", "unknown"}
    if profile == "strict":
        assert force >= {"RestrictNamespaces", "RestrictAddressFamilies", "SystemCallFilter", "LockPersonality",
                         "MemoryDenyWriteExecute", "UMask"}  # fmt: skip
        assert effects["ProtectClock"] == "covered"
    assert runtime_units() == []
    assert cortex.properties(NAME)["Warnings"] == []


@pytest.mark.parametrize(
    ("value", "effect", "why", "status"),
    [
        ("false", "off", "", WROTE | READ),
        ("read-only", "in force", "the server cannot write to your home", READ),
        ("tmpfs", "in force", "the server cannot write to your home, nor see your home", 0),
        ("true", "in force", "the server cannot write to your home, nor see your home", 0),
    ],
)
def test_what_is_said_of_home_is_what_a_server_meets(
    cortex: Cortex, value: str, effect: str, why: str, status: int
) -> None:
    # ProtectSystem=strict would close home for writing, too; a waiter may lie in home with its Python.
    cortex.register_tiny(
        NAME, "--set", f"ProtectHome={value}", "--set", "ProtectSystem=full", "--set", "health.endpoint=none"
    )
    home = [Path.home(), Path("/root"), Path("/home")]
    if value == "true" and any(Path(sys.executable).resolve().is_relative_to(folder) for folder in home):
        said = table(cortex, status=1)["ProtectHome"]  # our own Python can be opened to nobody then
        assert said[1] == "unknown" and "which cortexd needs in its sandbox; use tmpfs" in said[2]
    else:
        assert table(cortex)["ProtectHome"] == (value, effect, why)
    canary, own = Path.home() / "canary", Path.home() / "own"
    canary.write_text("x")
    attempt = f"touch {own} && s={WROTE} || s=0; grep -q x {canary} && exit $((s + {READ})); exit $s"
    drop_in(cortex, f"[Service]\nExecStart=\nExecStart=:/bin/sh -c '{attempt}'\nRestart=no\n")
    try:
        systemctl("start", f"cortex-{NAME}.service", check=False)
        ended = ("inactive", "failed")
        until(lambda: properties(f"cortex-{NAME}.service", "ActiveState")["ActiveState"] in ended, "its end")
        assert properties(f"cortex-{NAME}.service", "ExecMainStatus") == {"ExecMainStatus": f"{status}"}
        assert own.exists() is bool(status & WROTE)
    finally:
        drop_in(cortex)
        canary.unlink()
        own.unlink(missing_ok=True)


def test_none_is_said_to_be_in_force_that_a_drop_in_takes_away_alone(cortex: Cortex) -> None:
    """One after the other: what it prevented can be done, or something else prevents it, and it gets no credit for that."""
    cortex.register_tiny(NAME, "--security", "strict")
    force = {directive for directive, (_, effect, _) in table(cortex).items() if effect == "in force"}
    cortex.run("set", NAME, "sandbox_required=yes")
    off = {"SystemCallFilter": "", "RestrictAddressFamilies": "", "UMask": "0022"}
    for directive in sorted(force - {"PrivateUsers"}):  # without that one systemd sets up nothing else
        name = directive.partition("=")[0]
        drop_in(cortex, f"[Service]\n{name}={off.get(name, '' if '=' in directive else 'false')}\n")
        said = cortex.fails("start", NAME)
        assert "sandbox_required=yes: " in said and directive in said
    drop_in(cortex, "[Service]\nProtectClock=false\n")
    assert table(cortex)["ProtectClock"][1:] == (
        "covered",
        "the server cannot reach the calls that set the clock; without it SystemCallFilter prevents that",
    )
    drop_in(cortex)


def test_a_look_does_nothing_else_of_what_a_drop_in_says(cortex: Cortex, tmp_path: Path) -> None:
    """It ends no other unit, starts none, empties no file and takes no folder of the running server's away."""
    log, runtime = Path.home() / "server.log", Path(os.environ["XDG_RUNTIME_DIR"], "mine")
    cortex.register_tiny("other")
    cortex.register_tiny(NAME)
    drop_in(
        cortex,
        "[Unit]\nConflicts=cortex-other.service\nOnFailure=cortex-other.service\nWants=cortex-other.service\n",
        f"[Service]\nRuntimeDirectory=mine\nStandardOutput=truncate:{log}\nPrivateTmp=false\n",
    )
    try:
        cortex.run("start", NAME)
        cortex.run("start", "other")  # which stops the first
        cortex.until_state(NAME, "stopped")
        runtime.mkdir()
        (runtime / "socket").touch()
        log.write_text("precious\n")
        run = cortex.properties("other")["InvocationID"]
        assert (
            table(cortex, "--probe", status=1)["PrivateTmp"][1] == "not in force"
        )  # what it says of the sandbox counts
        cortex.run("check", NAME, check=False)
        assert log.read_text() == "precious\n" and (runtime / "socket").exists()
        assert (cortex.properties("other")["State"], cortex.properties("other")["InvocationID"]) == ("ready", run)
        cortex.run("stop", "other")
        table(cortex, "--probe", status=1)
        assert cortex.properties("other")["State"] == "stopped"
    finally:
        drop_in(cortex)
        cortex.run("unregister", "--force", "other", check=False)
        shutil.rmtree(runtime, ignore_errors=True)


def test_a_drop_in_with_which_it_cannot_start_is_named(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    drop_in(cortex, "[Service]\nUMask=0077\nBindReadOnlyPaths=/no/such/thing\n")
    why = "systemd cannot set it up (status 226/NAMESPACE): 'BindReadOnlyPaths=/no/such/thing' of its drop-ins is to blame"
    assert table(cortex, status=1)["PrivateTmp"] == ("yes", "unknown", why)
    assert cortex.properties(NAME)["Warnings"] == [f"sandbox: what of it is in force is not known: {why}"]
    drop_in(cortex)
    table(cortex)
    assert cortex.properties(NAME)["Warnings"] == []


def test_the_mask_that_was_asked_for_is_in_force(cortex: Cortex) -> None:
    mask = "0027"
    cortex.register_tiny(NAME, "--set", f"UMask={mask}", "--strict")
    assert table(cortex)["UMask"][:2] == (mask, "in force")
    cortex.run("start", NAME)
    pid = cortex.properties(NAME)["MainPID"]
    assert f"Umask:\t{mask}" in Path(f"/proc/{pid}/status").read_text()
    drop_in(cortex, "[Service]\nUMask=0026\n")
    assert table(cortex, status=1)["UMask"][:2] == (mask, "not in force")
    drop_in(cortex)


def test_a_probe_takes_a_second_or_two(cortex: Cortex) -> None:
    cortex.register_tiny(NAME)
    table(cortex)
    began = time.monotonic()
    table(cortex)  # kept: what the call and the program take
    kept = time.monotonic() - began
    began = time.monotonic()
    table(cortex, "--probe")
    assert time.monotonic() - began - kept < 3


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_a_real_llama_server_lives_in_it(cortex: Cortex, profile: str) -> None:
    cortex.register_tiny(NAME, "--security", profile, "--strict")
    cortex.run("start", NAME)
    request = urllib.request.Request(
        cortex.properties(NAME)["URL"] + "/v1/completions",
        json.dumps({"prompt": "a", "max_tokens": 4, "ignore_eos": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4
    with urllib.request.urlopen(cortex.properties(NAME)["URL"] + "/health", timeout=30) as answer:
        assert json.load(answer) == {"status": "ok"}
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
