"""The verb backends, and the words that complete --backend."""

from __future__ import annotations

from tests.cli.canned import backend
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

PROBLEM = "/u/backends/bad.toml: endpoint='x': must be a path that begins with / and has neither blanks nor a #"


def test_a_table_of_what_can_be_used_and_a_warning_for_each_that_cannot(cli: Cli, fake: FakeDaemon) -> None:
    cli.environment["PATH"] = "/venv/bin:/bin"
    fake.answers["ListBackends"] = (
        [
            backend("vllm", Executable="/venv/bin/vllm"),
            backend("bad", Source="/u/backends/bad.toml", Problem=PROBLEM),
            backend("mine", Source="/u/backends/mine.toml"),
        ],
    )
    done = cli.run("backends")
    assert done.returncode == 0
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        "NAME  EXECUTABLE      SOURCE",
        "vllm  /venv/bin/vllm  built-in",
        "mine  -               /u/backends/mine.toml",
    ]
    assert done.stderr == f"Warning: {PROBLEM}\n"
    (asked,) = fake.calls("ListBackends")
    assert asked.body == ({"search_path": ("s", "/venv/bin:/bin")},)


def test_json_has_them_all(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["ListBackends"] = ([backend("a", Quantizations=["awq"]), backend("bad", Problem=PROBLEM)],)
    first, second = cli.json("backends")
    assert first == {
        "Name": "a", "Description": "what a is", "Source": "built-in", "Executable": "", "Endpoint": "/health",
        "Quantizations": ["awq"], "Problem": "",
    }  # fmt: skip
    assert second["Problem"] == PROBLEM


def test_a_hostile_file_cannot_steer_the_terminal(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["ListBackends"] = (
        [backend("a", Source="/u/\x1b[31m.toml"), backend("b", Problem="x: \x1b]0;y\x07\nz")],
    )
    done = cli.run("backends")
    assert "\x1b" not in done.stdout + done.stderr and done.stderr.count("\n") == 1


def test_the_words_for_completion(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["ListBackends"] = ([backend("vllm"), backend("bad", Problem="x"), backend("mine")],)
    assert cli.ok("__complete", "backends") == "vllm\nmine\n"


def test_no_daemon_is_started_for_completion(cli: Cli) -> None:
    assert cli.ok("__complete", "backends") == ""
