"""The verb check: what it prints, and how it ends."""

from __future__ import annotations

from tests.cli.canned import model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

ERROR = ("error", "path", "/m.gguf", "is cut off\x1b[2J", "download it again")
WARNING = ("warning", "sandbox", "", "was not tried", "look")


def test_nothing_is_found(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    assert cli.ok("check", "a") == "a: nothing found that would keep it from starting\n"
    assert cli.json("check", "a") == [{"Name": "a", "findings": []}]


def test_warnings_are_a_success_and_errors_are_none(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"), model("b"))
    fake.answers["Check"] = ([WARNING],)
    assert cli.ok("check", "a") == "a: warning: sandbox: was not tried; look\n"
    fake.answers["Check"] = lambda asked: ([ERROR, WARNING] if asked.path.endswith("/b") else [WARNING],)
    done = cli.run("check", "*")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "a: warning: sandbox: was not tried; look",
        "b: error: path=/m.gguf: is cut off\\x1b[2J; download it again",
        "b: warning: sandbox: was not tried; look",
    ]


def test_json_has_each_part(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["Check"] = ([ERROR],)
    done = cli.run("check", "a", "--json")
    assert done.returncode == 1 and '"problem": "is cut off\\u001b[2J"' in done.stdout


def test_a_model_that_is_not_there(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    done = cli.run("check", "nope", "a")
    assert done.returncode == 4 and "a: nothing found" in done.stdout
