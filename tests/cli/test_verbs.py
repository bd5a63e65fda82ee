"""Verbs that register, change and list: what they ask the daemon, what they print, and how they end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortexd.names import model_path
from tests.cli.canned import MISSING, event, model
from tests.cli.conftest import PROJECT, Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import Refusal


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
    settings, options = fake.calls("Set")[0].body
    assert settings == {"memory": ("s", "128G"), "extra_args": ("s", ""), "host": ("s", "a=b")}
    assert {"search_path", "working_directory"} == set(options)  # a path is relative to where it was typed
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


@pytest.mark.parametrize(
    "verb", ["start", "stop", "status", "list", "wait", "health", "enable", "reset-failed", "show"]
)
def test_a_pattern_without_a_match(cli: Cli, fake: FakeDaemon, verb: str) -> None:
    fake.add(model("a"))
    done = cli.run(verb, "x*")
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "cortexctl: no model matches x*\n")
    done = cli.run(verb, "x*", "--json")
    assert (done.returncode, done.stdout) == (4, "[]\n")


def test_a_model_that_is_named_twice_is_asked_once(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("b"))
    cli.run("kill", "a", "nope", "a", "*")
    assert len(fake.calls("Kill")) == 2


@pytest.mark.parametrize("member", ["Kill", "Disable", "ResetFailed", "Enable"])
def test_a_refusal_is_one_sentence_and_the_others_go_on(cli: Cli, fake: FakeDaemon, member: str) -> None:
    fake.add(model("a"), model("b"))
    done: tuple[Any, ...] = ([],) if member == "Enable" else ()

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
        ("settings", ["path=", "backend=", "port="]),
        ("properties", ["CPUUsageNSec", "Name", "memory"]),
    ],
)
def test_completion_words(cli: Cli, fake: FakeDaemon, kind: str, words: list[str]) -> None:
    fake.add(model("a"), model("b"))
    assert set(words) <= set(cli.ok("__complete", kind).splitlines())


def test_completion_is_silent_without_a_daemon(cli: Cli) -> None:
    assert cli.ok("__complete", "names") == ""
