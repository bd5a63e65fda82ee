"""The verb secret, and what register has to do with secrets."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cortexd.names import model_path
from tests.cli.canned import model
from tests.cli.conftest import PROJECT, Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import DEADLINE, Refusal

ALARM = "host=0.0.0.0: anybody who reaches this machine can use the model, and it asks for no key; host=127.0.0.1"


def given(cli: Cli, value: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A run with something on standard input."""
    return subprocess.run(
        cli.command(*arguments), input=value, capture_output=True, env=cli.environment, cwd=PROJECT, timeout=60, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "sent"), [(b"abc", b"abc"), (b"abc\n", b"abc"), (b"abc\n\n", b"abc\n"), (b" a b \n", b" a b "), (b"\xff\0", b"\xff\0"), (b"", b"")]
)  # fmt: skip
def test_a_value_from_standard_input(cli: Cli, fake: FakeDaemon, typed: bytes, sent: bytes) -> None:
    fake.add(model("a"))
    done = given(cli, typed, "secret", "set", "a", "HF_TOKEN")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Set secret HF_TOKEN of a\n", b"")
    (call,) = fake.calls("SetSecret")
    key, value, options = call.body
    assert (call.path, key, bytes(value), options) == (model_path("a"), "HF_TOKEN", sent, {})


def test_no_more_is_read_than_can_be_a_value(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    given(cli, b"x" * 200_000, "secret", "set", "a", "HF_TOKEN")
    assert len(fake.calls("SetSecret")[0].body[1]) == 65538


def on_a_terminal(cli: Cli, typed: bytes, *arguments: str) -> tuple[int, bytes]:
    """Exit code and everything that a terminal shows; `typed` is typed as soon as something is asked."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(PROJECT)
        command = cli.command(*arguments)
        os.execve(command[0], command, cli.environment | {"TERM": "xterm"})
    shown, end = b"", time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                break  # it has ended
        if typed and b": " in shown:
            os.write(terminal, typed)
            typed = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_value_from_the_terminal_is_not_echoed(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    code, shown = on_a_terminal(cli, b"topsecret\n", "secret", "set", "a", "HF_TOKEN")
    assert code == 0 and b"Value of HF_TOKEN for a: " in shown and b"topsecret" not in shown
    assert bytes(fake.calls("SetSecret")[0].body[1]) == b"topsecret"


def test_a_terminal_that_says_nothing(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    code, shown = on_a_terminal(cli, b"\x04", "secret", "set", "a", "HF_TOKEN")
    assert code == 2 and b"no value was given" in shown and not fake.calls("SetSecret")
    code, shown = on_a_terminal(cli, b"\x03", "secret", "set", "a", "HF_TOKEN")
    assert code == 130 and b"Traceback" not in shown


def test_a_value_on_the_command_line_is_refused_and_not_repeated(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    message = cli.fails("secret", "set", "a", "HF_TOKEN", "topsecret", code=2)
    assert "standard input" in message and "topsecret" not in message
    message = cli.fails("register", "b", "--path", "p", "--api-key", "topsecret", code=2)
    assert "takes only auto" in message and "topsecret" not in message
    assert not fake.calls("SetSecret") and not fake.calls("Register")


@pytest.mark.parametrize(
    ("line", "says"),
    [("secret", "required: set|unset|list"), ("secret show a", "'show' is none of set, unset and list"), ("secret list", "list takes NAME"),
     ("secret set a", "set takes NAME KEY"), ("secret unset a", "unset takes NAME KEY"), ("secret unset a B C", "unset takes NAME KEY")],
)  # fmt: skip
def test_usage(cli: Cli, fake: FakeDaemon, line: str, says: str) -> None:
    assert says in cli.fails(*line.split(), code=2)


@pytest.mark.parametrize("line", ["secret set nope A", "secret unset nope A", "secret list nope"])
def test_an_unknown_model_is_known_before_a_value_is_asked_for(cli: Cli, fake: FakeDaemon, line: str) -> None:
    assert "no model 'nope' is registered" in cli.fails(*line.split(), code=4)
    assert not fake.calls("SetSecret")


def test_a_refusal(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["SetSecret"] = Refusal("InvalidConfig", "value: is empty; 'cortexctl secret unset' removes a secret")
    assert cli.fails("secret", "set", "a", "K") == "value: is empty; 'cortexctl secret unset' removes a secret"


def test_a_restart_is_told(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", RestartNeeded=True))
    fake.answers["SetSecret"] = (True,)
    done = given(cli, b"x", "secret", "set", "a", "K")
    assert b"'cortexctl restart a' brings it" in done.stderr
    assert b'"RestartNeeded": true' in given(cli, b"x", "secret", "set", "a", "K", "--json").stdout
    done = given(cli, b"", "secret", "unset", "a", "K")
    assert (done.stdout, b"restart a" in done.stderr) == (b"Removed secret K of a\n", True)
    assert fake.calls("RemoveSecret")[0].body == ("K", {})


def test_list(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", Secrets=["A_KEY", "HF_TOKEN"]), model("b"))
    assert cli.ok("secret", "list", "a") == "A_KEY\nHF_TOKEN\n"
    assert cli.ok("secret", "list", "b") == ""
    assert cli.json("secret", "list", "a") == {"Name": "a", "Secrets": ["A_KEY", "HF_TOKEN"]}


@pytest.mark.parametrize(
    ("before", "words"),
    [("", ["set", "unset", "list"]), ("set", ["a", "b"]), ("list", ["a", "b"]), ("unset a", ["A_KEY", "HF_TOKEN"]), ("set b", []),
     ("list a", []), ("unset a A_KEY", []), ("unset nope", []), ("show", [])],
)  # fmt: skip
def test_completion(cli: Cli, fake: FakeDaemon, before: str, words: list[str]) -> None:
    fake.add(model("a", Secrets=["A_KEY", "HF_TOKEN"]), model("b"))
    assert cli.ok("__complete", "secret", "--", *before.split()).split() == words


def test_a_value_that_is_made(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    values = set()
    for _ in range(2):
        done = cli.run("secret", "set", "a", "VLLM_API_KEY", "--generate")
        assert (done.returncode, done.stdout) == (0, "Set secret VLLM_API_KEY of a\n")
        value = bytes(fake.calls("SetSecret")[-1].body[1]).decode()
        assert len(value) >= 43 and value not in done.stdout + done.stderr
        assert "lies in ~/.cortex/secrets/a/environment as VLLM_API_KEY" in done.stderr
        assert 'echo "Authorization: Bearer $VLLM_API_KEY"' in done.stderr
        values.add(value)
    assert len(values) == 2
    assert "--generate goes with set, not with unset" in cli.fails("secret", "unset", "a", "K", "--generate", code=2)


def test_register_with_variables(cli: Cli, fake: FakeDaemon) -> None:
    cli.ok("register", "a", "--path", "p", "--env", "A=1", "--env", "B=two words")
    assert fake.calls("Register")[0].body[1]["env"] == ("s", "A=1 'B=two words'")
    assert "api_key" not in fake.calls("Register")[0].body[2]


def test_register_with_a_key(cli: Cli, fake: FakeDaemon) -> None:
    def answer(asked: Any) -> Any:
        fake.add(model("a", Secrets=["VLLM_API_KEY"]))
        return model_path("a"), []

    fake.answers["Register"] = answer
    done = cli.run("register", "a", "--path", "p", "--api-key", "auto")
    assert done.returncode == 0 and fake.calls("Register")[0].body[2]["api_key"] == ("s", "auto")
    assert "lies in ~/.cortex/secrets/a/environment as VLLM_API_KEY" in done.stderr
    assert 'curl -H @- "$(cortexctl url a)/v1/models"' in done.stderr


def test_what_is_open_to_all_is_loud(cli: Cli, fake: FakeDaemon, tmp_path: Path) -> None:
    fake.add(model("a", Warnings=[ALARM, "another"]))
    fake.answers["Register"] = (model_path("a"), [ALARM, "another"])
    for arguments in (("register", "a", "--path", "p"), ("status", "a", "-n", "0")):
        _, shown = on_a_terminal(cli, b"", *arguments)
        assert ALARM.encode() + b"\x1b[0m" in shown and b"\x1b[1;31m" in shown, shown
        assert b"another\x1b" not in shown
    assert f"Warning: a: {ALARM}\n" in cli.run("register", "a", "--path", "p").stderr
