"""cortexctl why: the sentence, then what to do, then the evidence."""

from __future__ import annotations

import json

from tests.cli.canned import cause, model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon


def test_the_sentence_comes_first(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="failed"))
    done = cli.run("why", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "a: port 8080 is taken by another program",
        "  stop it, or 'cortexctl set a port=auto'",
        "",
        "    Result: exit-code",
        "  Restarts: 3",
        "       Log: bind: address already in use",
    ]


def test_log_lines_stand_below_one_another_and_cannot_steer_the_terminal(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="failed"))
    rows = [("Log", "\x1b[31mred\x1b[0m \x07bell"), ("Log", "\x1b]0;title\x07second")]
    fake.answers["Why"] = (cause(Sentence="broken \x1b[2J", Remedy="", Evidence=rows),)
    assert cli.run("why", "a").stdout.splitlines() == [
        "a: broken \\x1b[2J",
        "",
        "  Log: red \\x07bell",
        "       second",
    ]


def test_of_several_models_in_their_order(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("b", State="ready"), model("a", State="failed"))
    fake.answers["Why"] = lambda asked: (
        (cause(Sentence="it is ready", Remedy="", Evidence=[]),) if asked.path.endswith("/b") else (cause(Evidence=[]),)
    )
    assert cli.run("why", "*").stdout.splitlines() == [
        "a: port 8080 is taken by another program",
        "  stop it, or 'cortexctl set a port=auto'",
        "",
        "b: it is ready",
    ]


def test_json_and_unknown_models(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="failed"))
    (found,) = json.loads(cli.run("why", "a", "--json").stdout)
    assert found == {
        "Name": "a",
        "State": "failed",
        "Cause": "port-in-use",
        "Sentence": "port 8080 is taken by another program",
        "Remedy": "stop it, or 'cortexctl set a port=auto'",
        "Evidence": [
            {"label": "Result", "text": "exit-code"},
            {"label": "Restarts", "text": "3"},
            {"label": "Log", "text": "bind: address already in use"},
        ],
    }
    done = cli.run("why", "nobody")
    assert (done.returncode, "no model 'nobody'" in done.stderr) == (4, True)
    done = cli.run("why", "a", "nobody")
    assert (done.returncode, done.stdout.startswith("a: port")) == (4, True)
