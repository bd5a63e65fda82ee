"""Each verb: what it asks the daemon, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cortexd.names import model_path
from tests.cli.conftest import PROJECT, Cli
from tests.cli.fake_daemon import MISSING, FakeDaemon, Refusal, event, health, model

ACTIVE = ("ready", "busy", "degraded", "unhealthy")
STATES = (*ACTIVE, "stopped", "starting", "restarting", "stopping", "failed")


def options(fake: FakeDaemon, member: str) -> dict[str, Any]:
    """The dictionary that a call ended with, without the variants' types."""
    return {key: value for key, (_, value) in fake.calls(member)[-1].body[-1].items()}


def test_register_sends_the_surroundings(cli: Cli, fake: FakeDaemon) -> None:
    cli.environment["PATH"] = "/venv/bin:/usr/bin:/bin"
    cli.ok("register", "a", "--path", "model.gguf")
    assert options(fake, "Register") == {"search_path": "/venv/bin:/usr/bin:/bin", "working_directory": str(PROJECT)}


def test_register_with_any_setting(cli: Cli, fake: FakeDaemon) -> None:
    words = "--no-health-check --set MemoryHigh=20G --set health.interval_seconds=5 --set extra_args=--a=b --cpu 2"
    cli.ok("register", "a", "--path", "p", *words.split())
    settings = {key: value for key, (_, value) in fake.calls("Register")[0].body[1].items()}
    assert settings == {
        "path": "p", "cpu": "2", "health.enabled": "no", "MemoryHigh": "20G", "health.interval_seconds": "5",
        "extra_args": "--a=b",
    }  # fmt: skip


def test_register_warns_and_goes_on(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["Register"] = (model_path("a"), ["port 8000 belongs to b, too"])
    done = cli.run("register", "a", "--path", "p")
    assert (done.returncode, done.stderr) == (0, "Warning: a: port 8000 belongs to b, too\n")
    assert cli.json("register", "a", "--path", "p") == {
        "Name": "a",
        "Unit": "cortex-a.service",
        "Path": model_path("a"),
        "Warnings": ["port 8000 belongs to b, too"],
    }


def test_set(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("b"))
    fake.answers["Set"] = (True, ["above the machine's memory"])
    done = cli.run("set", "a", "b", "memory=128G", "extra_args=", "host=a=b")
    assert done.returncode == 0
    assert done.stdout == "Changed memory, extra_args, host of a\nChanged memory, extra_args, host of b\n"
    assert done.stderr.splitlines()[-1].endswith("'cortexctl restart a b' brings it")
    assert {call.path for call in fake.calls("Set")} == {model_path("a"), model_path("b")}
    assert fake.calls("Set")[0].body == ({"memory": ("s", "128G"), "extra_args": ("s", ""), "host": ("s", "a=b")}, {})
    assert cli.json("set", "a", "memory=1G")[0]["RestartNeeded"] is True


def test_set_needs_names_and_settings(cli: Cli, fake: FakeDaemon) -> None:
    assert "no model is named" in cli.fails("set", "memory=1G", code=2)
    assert "no KEY=VALUE" in cli.fails("set", "a", code=2)
    assert "'=1G' is no KEY=VALUE" in cli.fails("set", "a", "=1G", code=2)
    assert not fake.calls("Set")


def test_show(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", MemoryCurrent=5, Warnings=["one\nline"]), model("b"))
    shown = dict(line.split("=", 1) for line in cli.ok("show", "a").splitlines())
    assert set(shown) == (set(fake.models["a"]) - {"Settings"}) | set(fake.models["a"]["Settings"])
    wanted = {
        "memory": "32G", "gpus": "none", "cpu": "4", "NoNewPrivileges": "yes", "State": "stopped",
        "MemoryCurrent": "5", "TasksCurrent": "[not available]", "Warnings": "'one\\nline'",
    }  # fmt: skip
    assert {key: shown[key] for key in wanted} == wanted
    assert cli.ok("show", "a", "-p", "memory,State", "--property=Name") == "memory=32G\nState=stopped\nName=a\n"
    assert cli.ok("show", "a", "b", "-p", "Name", "--value") == "a\nb\n"
    assert "no property or setting 'nope'" in cli.fails("show", "a", "-p", "nope")


def test_show_in_json_is_exact(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", MemoryCurrent=MISSING, CPUUsageNSec=7))
    (info,) = cli.json("show", "a")
    assert info["Settings"]["memory"] == 32 * 1024**3
    assert (info["MemoryCurrent"], info["CPUUsageNSec"]) == (None, 7)
    assert cli.json("show", "a", "-p", "memory,State") == [{"memory": 32 * 1024**3, "State": "stopped"}]


def test_cat(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["GetUnitFiles"] = ([("/u/a.service", "[Service]\n"), ("/u/a.service.d/x.conf", "A=\x1b[2J\tb")],)
    assert cli.ok("cat", "a") == "# /u/a.service\n[Service]\n\n# /u/a.service.d/x.conf\nA=\\x1b[2J\tb\n"
    files = [{"Path": "/u/a.service", "Text": "[Service]\n"}, {"Path": "/u/a.service.d/x.conf", "Text": "A=\x1b[2J\tb"}]
    assert cli.json("cat", "a") == [{"Name": "a", "Files": files}]


@pytest.mark.parametrize("state", STATES)
def test_exit_codes_follow_the_state(cli: Cli, fake: FakeDaemon, state: str) -> None:
    fake.add(model("a", State=state))
    active = 0 if state in ACTIVE else 3
    done = cli.run("is-active", "a")
    assert (done.returncode, done.stdout) == (active, f"{state}\n")
    assert cli.run("status", "a").returncode == active
    assert cli.run("status").returncode == 0
    done = cli.run("is-failed", "a")
    assert (done.returncode, done.stdout) == (0 if state == "failed" else 1, f"{state}\n")


@pytest.mark.parametrize(
    ("unit_file", "code"), [("enabled", 0), ("enabled-runtime", 0), ("disabled", 1), ("masked", 1), ("not-found", 1)]
)
def test_is_enabled(cli: Cli, fake: FakeDaemon, unit_file: str, code: int) -> None:
    fake.add(model("a", UnitFileState=unit_file))
    done = cli.run("is-enabled", "a")
    assert (done.returncode, done.stdout) == (code, f"{unit_file}\n")


def test_checks_of_several_succeed_when_one_does(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="ready"), model("b"))
    done = cli.run("is-active", "b", "nope", "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\nready\nunknown\n", "")
    assert cli.run("is-active", "b", "nope").returncode == 3
    assert cli.run("is-active", "nope").returncode == 4
    assert cli.run("is-active", "nope*").returncode == 4
    assert cli.run("is-active", "*").returncode == 0
    assert cli.ok("is-active", "a", "--quiet") == ""
    assert cli.json("is-active", "a") == [{"Name": "a", "State": "ready"}]


UNKNOWN = "no model 'nope' is registered; 'cortexctl list' shows those that are"


@pytest.mark.parametrize(
    "line",
    ["start", "stop", "restart", "enable", "disable", "unregister", "kill", "reset-failed", "wait", "status", "list",
     "show", "cat", "health", "url", "events", "logs", "set nope a=b"],
)  # fmt: skip
def test_an_unknown_model_is_4_everywhere(cli: Cli, fake: FakeDaemon, line: str) -> None:
    assert cli.fails(*(line if " " in line else f"{line} nope").split(), code=4) == UNKNOWN


def test_the_known_models_are_served_beside_an_unknown_one(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("b"))
    done = cli.run("stop", "b", "nope", "a*")
    assert (done.returncode, done.stdout) == (4, "b is stopped\na is stopped\n")
    assert done.stderr == f"cortexctl: {UNKNOWN}\n"
    assert [call.path for call in fake.calls("Stop")] == [model_path("b"), model_path("a")]


def test_a_pattern_without_a_match_is_no_error(cli: Cli, fake: FakeDaemon) -> None:
    done = cli.run("stop", "x*")
    assert (done.returncode, done.stderr) == (0, "cortexctl: no model matches x*\n")
    done = cli.run("status", "x*")
    assert (done.returncode, done.stderr) == (4, "cortexctl: no model matches x*\n")


def test_a_model_that_is_named_twice_is_asked_once(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("b"))
    cli.run("kill", "a", "nope", "a", "*")
    assert len(fake.calls("Kill")) == 2


def test_the_table(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(
        model("ready-one", State="ready", MainPID=1, MemoryCurrent=3 * 1024**3, UnitFileState="enabled"),
        model("broken", State="failed", StateReason="no such file \x1b[31m", RestartNeeded=True),
    )
    assert cli.ok("status").splitlines() == [
        "  NAME       STATE   BACKEND   ENDPOINT               MEMORY  BOOT",
        "× broken     failed  llamacpp  http://127.0.0.1:8080  -       disabled",
        "    no such file \\x1b[31m; settings changed since it was started; restart it to use them",
        "● ready-one  ready   llamacpp  http://127.0.0.1:8080  3.0G    enabled",
    ]
    assert cli.ok("list") == cli.ok("status")
    assert cli.ok("list", "b*").count("\n") == 3


def test_the_table_in_one_round_trip(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(*(model(f"m{n:03}") for n in range(100)))
    assert cli.ok("list").count("\n") == 101
    assert len(fake.calls("ListModels")) == 1


def test_an_empty_table_says_what_to_do(cli: Cli, fake: FakeDaemon) -> None:
    done = cli.run("status")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no model is registered; 'cortexctl register" in done.stderr
    assert cli.json("status") == []


def test_the_table_in_json_has_every_property(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="ready"), model("b", State="busy"))
    for line in ("status", "list", "status a b"):
        infos = cli.json(*line.split())
        assert [info["Name"] for info in infos] == ["a", "b"]
        assert set(infos[0]) == set(fake.models["a"])


def test_the_table_passes_on_what_is_wrong_around_the_daemon(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.warnings = ["unit cortex-x.service has no model"]
    fake.version = "0.0.1"
    done = cli.run("status")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first == "Warning: unit cortex-x.service has no model"
    assert "0.0.1" in second and "systemctl --user restart cortexd" in second


def test_status_of_a_model(cli: Cli, fake: FakeDaemon) -> None:
    running = {"ActiveState": "active", "SubState": "running", "MainPID": os.getpid(), "UnitFileState": "enabled"}
    fake.add(
        model(
            "a", State="unhealthy", StateReason="three probes failed", Health="failing", HealthFailures=3,
            HealthReason="503", MemoryCurrent=3 * 1024**3, CPUUsageNSec=83 * 10**9, TasksCurrent=75, NRestarts=2,
            StateChangeTimestamp=1_795_439_719_732_247, DropInPaths=["/u/a.service.d/x.conf"], ControlGroup="/c/a",
            StatusText="Serving", RestartNeeded=True, Warnings=["the unit file was edited by hand"], **running,
        )
    )  # fmt: skip
    command = Path("/proc/self/comm").read_text().strip()
    lines = cli.ok("status", "a", "-n", "0").splitlines()
    active = "    Active: active (running) since Mon 2026-11-23 13:15:19 UTC; "
    assert lines[7].startswith(active)
    lines[7] = active
    assert lines == [
        "● a - llamacpp: /models/tiny.gguf",
        "     State: unhealthy",
        "    Reason: three probes failed",
        "    Health: failing (3 in a row): 503",
        "       URL: http://127.0.0.1:8080",
        "    Loaded: loaded (/home/u/.config/systemd/user/cortex-a.service; enabled)",
        "   Drop-In: /u/a.service.d/x.conf",
        active,
        '    Status: "Serving"',
        "  Restarts: 2",
        f"  Main PID: {os.getpid()} ({command})",
        "    Memory: 3.0G (high: 28G, limit: 32G)",
        "       CPU: 1min 23s (limit: 4 cores)",
        "     Tasks: 75 (limit: 512)",
        "        IO: not available: the control group has no io controller",
        "    CGroup: /c/a",
        "   Changed: settings were changed since it was started; restart it to use them",
        "   Warning: the unit file was edited by hand",
    ]


def test_status_says_what_the_machine_cannot_measure(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="ready", MainPID=1))
    text = cli.ok("status", "a", "-n", "0")
    assert "Memory: not available: the control group has no memory controller (high: 28G, limit: 32G)" in text


@pytest.mark.parametrize("member", ["Kill", "Disable", "ResetFailed", "Enable"])
def test_a_refusal_is_one_sentence_and_the_others_go_on(cli: Cli, fake: FakeDaemon, member: str) -> None:
    fake.add(model("a"), model("b"))
    done = {"Disable": (), "ResetFailed": (), "Kill": (), "Enable": ([],)}[member]

    def answer(asked: Any) -> Any:
        if asked.path == model_path("a"):
            raise Refusal("Busy", "another operation runs")
        return done

    fake.answers[member] = answer
    verb = {"Kill": "kill", "Disable": "disable", "ResetFailed": "reset-failed", "Enable": "enable"}[member]
    assert cli.fails(verb, "a", "b", "--quiet") == "a: another operation runs"
    assert len(fake.calls(member)) == 2
    records = json.loads(cli.run(verb, "a", "b", "--json").stdout)
    assert {"Name": "a", "error": "Busy", "message": "a: another operation runs"} in records
    assert "b" in [record["Name"] for record in records]


def test_kill(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    assert cli.ok("kill", "a", "--signal", "KILL", "--whom", "main") == "Sent KILL to a\n"
    assert fake.calls("Kill")[0].body == ("KILL", {"whom": ("s", "main")})
    assert cli.json("kill", "a", "-s", "9") == [{"Name": "a", "Signal": "9"}]
    cli.ok("kill", "a")
    assert fake.calls("Kill")[2].body == ("TERM", {"whom": ("s", "all")})


def test_enable_and_disable(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["Enable"] = (["you do not linger: loginctl enable-linger"],)
    done = cli.run("enable", "a")
    assert (done.returncode, done.stdout) == (0, "a will start at boot\n")
    assert done.stderr == "Warning: a: you do not linger: loginctl enable-linger\n"
    assert options(fake, "Enable") == {}
    cli.run("enable", "--linger", "a")
    assert options(fake, "Enable") == {"linger": True}
    assert cli.ok("disable", "a") == "a will not start at boot\n"


def test_enable_and_disable_now(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    assert cli.ok("enable", "--now", "a").startswith("a is ready at http://127.0.0.1:8080 (")
    assert [call.member for call in fake.asked if call.member in ("Enable", "Start", "Wait")] == [
        "Enable",
        "Start",
        "Wait",
    ]
    assert cli.ok("disable", "--now", "a") == "a is stopped\n"
    assert len(fake.calls("Stop")) == 1


def test_reset_failed_of_all(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("b"))
    assert cli.ok("reset-failed") == ""
    assert len(fake.calls("ResetFailed")) == 2


def test_health(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    assert cli.ok("health", "a") == "a is healthy: 200 in 3.2ms at http://127.0.0.1:8080/health\n"
    fake.answers["CheckHealth"] = (
        health(Healthy=False, Outcome="timeout", Reason="no answer", Failures=2, Next="a restart"),
    )
    done = cli.run("health", "a")
    assert done.returncode == 1
    assert "a is failing: timeout in 3.2ms" in done.stdout
    assert done.stdout.endswith("; no answer; 2 of 3 failures in a row; a restart\n")
    done = cli.run("health", "a", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)[0]["LatencyUSec"] == 3200


def test_url(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    assert cli.ok("url", "a") == "http://127.0.0.1:8080\n"
    assert cli.ok("url", "a", "--quiet") == "http://127.0.0.1:8080\n"
    assert cli.json("url", "a") == [{"Name": "a", "URL": "http://127.0.0.1:8080"}]


def test_events(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["ListEvents"] = (
        [event(1, Message="start\x07 asked for"), event(2, Actor="", Kind="ready", Model="a-rather-long-name")],
    )
    assert cli.ok("events").splitlines() == [
        "TIME                 MODEL               KIND        MESSAGE",
        "2023-11-14 22:13:20  a                   start       start\\x07 asked for (uid 1000)",
        "2023-11-14 22:13:20  a-rather-long-name  ready       message 2",
    ]
    assert [entry["Id"] for entry in cli.json("events")] == [1, 2]


def test_events_of_some(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("ab"))
    fake.answers["ListEvents"] = ([event(1)],)
    cli.ok("events", "gone", "a*", "-n", "7", "--kind", "run,ready", "-k", "start", "--since", "2026-11-23 14:05")
    names, _ = fake.calls("ListEvents")[0].body
    assert names == ["gone", "a", "ab"], "a model that was removed has its past, too"
    assert options(fake, "ListEvents") == {
        "limit": 7, "kinds": ["run", "ready", "start"], "since": 1_795_442_700_000_000
    }  # fmt: skip
    assert "--since 'soon'" in cli.fails("events", "--since", "soon", code=2)


def test_events_followed(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["ListEvents"] = ([event(1), event(2)],)
    with cli.started("events", "--follow", "--json") as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["Id"] for _ in range(2)] == [1, 2]
        fake.answers["ListEvents"] = ([event(2), event(3)],)
        fake.tell()
        assert json.loads(process.stdout.readline())["Id"] == 3
    assert options(fake, "ListEvents")["since"] == event(2)["Time"][1]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("names", ["a", "b"]),
        ("settings", ["path", "backend", "port"]),
        ("properties", ["CPUUsageNSec", "Name", "memory"]),
    ],
)
def test_completion_words(cli: Cli, fake: FakeDaemon, kind: str, words: list[str]) -> None:
    fake.add(model("a"), model("b"))
    assert set(words) <= set(cli.ok("__complete", kind).splitlines())


def test_completion_is_silent_without_a_daemon(cli: Cli) -> None:
    assert cli.ok("__complete", "names") == ""
