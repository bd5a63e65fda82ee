"""health: what a probe means in words, in JSON and in the exit status."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.cli.canned import health, model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

AT = "at http://127.0.0.1:8080/health"
TIMEOUT = {"Healthy": False, "Outcome": "time-out", "Reason": "no answer within 10 s", "LatencyUSec": 10_000_000}


def ask(cli: Cli, fake: FakeDaemon, **changes: Any) -> tuple[int, list[str]]:
    """Exit status and lines of `health a`, where the daemon answers with these changes."""
    fake.add(model("a"))
    fake.answers["CheckHealth"] = (health(**changes),)
    done = cli.run("health", "a")
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_healthy(cli: Cli, fake: FakeDaemon) -> None:
    assert ask(cli, fake) == (0, [
        f"a is healthy: ok in 3.2ms {AT}; after 3 failed probes in a row it is restarted",
        "  22:13:20  http    ok                      3.2ms",
    ])  # fmt: skip
    assert cli.ok("health", "a", "--quiet") == ""


def test_failing(cli: Cli, fake: FakeDaemon) -> None:
    code, lines = ask(
        cli, fake, **TIMEOUT, Health="failing", State="degraded", Failures=2, Next="after one more failed probe it is restarted",
        History=[(1_700_000_000_000_000, "http", "time-out", 9_000_000, "busy"),
                 (1_700_000_030_000_000, "http", "time-out\x1b[2J", 10_000_000, "failed")],
    )  # fmt: skip
    assert (code, lines[0]) == (
        1,
        f"a is failing: time-out in 10.0s {AT}; no answer within 10 s; 2 of 3 failed probes in a row; "
        "after one more failed probe it is restarted",
    )
    assert [line.split(maxsplit=4) for line in lines[1:]] == [
        ["22:13:20", "http", "time-out", "9.0s", "busy: not counted"],
        ["22:13:50", "http", "time-out\\x1b[2J", "10.0s", "counted as failed"],
    ]
    done = cli.run("health", "a", "--json")
    assert (done.returncode, json.loads(done.stdout)[0]["LatencyUSec"]) == (1, 10_000_000)


def test_a_server_that_is_only_busy_is_well(cli: Cli, fake: FakeDaemon) -> None:
    why = "no answer within 10 s, but it uses CPU time"
    code, lines = ask(cli, fake, **TIMEOUT, Health="busy", State="busy", StateReason=why)
    assert (code, lines[0]) == (
        0,
        f"a is busy: time-out in 10.0s {AT}; not counted: {why}; after 3 failed probes in a row it is restarted",
    )
    assert cli.json("health", "a")[0]["Health"] == "busy"


@pytest.mark.parametrize(("usual", "shown"), [(6_000_000, " of usually 6.0s"), (0, "")])
def test_a_model_that_starts(cli: Cli, fake: FakeDaemon, usual: int, shown: str) -> None:
    code, lines = ask(
        cli, fake, Health="unknown", State="starting", StateReason="/health answers 503\x1b[2J", Healthy=False,
        Outcome="server-error", Next="liveness probes begin once it is ready", History=[], UsualLoadUSec=usual,
        StateChangeTimestamp=int((time.time() - 3600 * 2 - 60) * 1e6),
    )  # fmt: skip
    text = f"a is starting (2h 1min{shown}): /health answers 503\\x1b[2J; liveness probes begin once it is ready"
    assert (code, lines) == (1, [text])


@pytest.mark.parametrize(
    ("state", "reason", "says"),
    [
        ("restarting", "it crashed; systemd starts it again 5 s after its end",
         "it crashed; systemd starts it again 5 s after its end; liveness probes begin once it is ready"),
        ("stopped", "", "it is not probed"),
        ("failed", "the server exited with status 1", "the server exited with status 1; it is not probed"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_run(cli: Cli, fake: FakeDaemon, state: str, reason: str, says: str) -> None:
    code, lines = ask(
        cli, fake, Health="unknown", State=state, StateReason=reason, Healthy=False, Outcome="not-running",
        Reason=f"it is {state}", Next="liveness probes begin once it is ready", StateChangeTimestamp=1,
    )  # fmt: skip
    assert (code, lines) == (1, [f"a is {state}: {says}"])


def test_health_waits_until_there_is_something_to_ask(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="starting"))
    with cli.started("health", "a", "--wait") as process:
        fake.wait_for("ListModels")
        assert fake.calls("CheckHealth") == []
        fake.change("a", State="ready")
        out, errors = process.communicate()
    assert (process.returncode, errors, out.splitlines()[0][:12]) == (0, "", "a is healthy")
    fake.change("a", State="failed")
    done = cli.run("health", "a", "--wait")
    assert (done.returncode, done.stdout) == (1, "") and "a is failed" in done.stderr
    fake.change("a", State="starting")
    assert "not ready after 0.1 s" in cli.fails("health", "a", "--wait", "--timeout", "0.1")


SICK = {"Healthy": False, "Outcome": "server-error", "Reason": "503", "Health": "failing", "State": "degraded"}


def test_health_waits_until_a_server_that_runs_is_well(cli: Cli, fake: FakeDaemon) -> None:
    """It asks again as soon as its state is another, and prints the last answer alone."""
    fake.add(model("a", State="degraded"), model("b"))
    asked: list[str] = []

    def answer(call: Any) -> Any:
        asked.append(call.path)
        fake.change("b", State="degraded")  # which is no reason
        if len(asked) == 8:
            return (health(),)
        fake.change("a", State="degraded" if len(asked) % 2 else "unhealthy")
        return (health(**SICK),)

    fake.answers["CheckHealth"] = answer
    began = time.monotonic()
    out = cli.ok("health", "a", "--wait")
    assert len(asked) == 8 and time.monotonic() - began < 2 * 6
    assert out.startswith("a is healthy: ok") and "a is failing" not in out


def test_health_asks_again_where_nothing_is_heard(cli: Cli, fake: FakeDaemon) -> None:
    """The probe that was asked for may find a server well before the daemon's own do."""
    fake.add(model("a", State="degraded"), model("b"))
    asked: list[str] = []

    def answer(call: Any) -> Any:
        asked.append(call.path)
        return (health(**SICK) if len(asked) < 2 else health(),)

    fake.answers["CheckHealth"] = answer
    began = time.monotonic()
    assert cli.ok("health", "a", "--wait").startswith("a is healthy")
    assert len(asked) == 2 and time.monotonic() - began >= 2


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_health_does_not_wait_for_what_is_over(cli: Cli, fake: FakeDaemon, state: str) -> None:
    fake.add(model("a", State="degraded"))
    fake.answers["CheckHealth"] = (health(Health="unknown", State=state, Healthy=False, Outcome="not-running"),)
    done = cli.run("health", "a", "--wait")
    assert (done.returncode, len(fake.calls("CheckHealth"))) == (1, 1) and f"a is {state}" in done.stdout


def test_health_waits_no_longer_than_it_may(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="degraded"))
    fake.answers["CheckHealth"] = (health(**SICK),)
    done = cli.run("health", "a", "--wait", "--timeout", "0.2")
    assert done.returncode == 1 and done.stdout.startswith("a is failing: server-error")


def test_a_unix_socket_is_named_in_words(cli: Cli, fake: FakeDaemon) -> None:
    endpoint = "--unix-socket /run/user/1/models/a/api.sock http://localhost/health"
    _, lines = ask(cli, fake, Endpoint=endpoint)
    assert lines[0].startswith("a is healthy: ok in 3.2ms at /health of /run/user/1/models/a/api.sock; ")


def test_what_did_not_count_and_why(cli: Cli, fake: FakeDaemon) -> None:
    """cortexd cannot tell its own standstill from the machine's."""
    void = [(1_700_000_000_000_000, "http", outcome, 10_000_000, "void") for outcome in ("time-out", "not-asked")]
    _, lines = ask(cli, fake, History=void)
    assert [line.split("  ")[-1] for line in lines[1:]] == [
        "the machine or cortexd stood still: not counted", "cortexd could not ask: not counted",
    ]  # fmt: skip
