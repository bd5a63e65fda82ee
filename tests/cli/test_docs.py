"""Manual page and completion: nothing of the parser is missing, and the programs that read them are content."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cortexctl.completion import SHELLS, options
from cortexctl.docs import manual
from cortexctl.errors import EXIT_CODES
from cortexctl.verbs import SETTING_OPTIONS, VERBS
from cortexd.model import SETTINGS
from tests.cli.canned import event, model
from tests.cli.conftest import PROJECT, Cli
from tests.cli.fake_daemon import FakeDaemon


@pytest.fixture(scope="module")
def page() -> str:
    """The manual page as a person reads it, in one line."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rLL=200n", "-P-c", "-P-u", "-P-b", "-P-o"],
        input=manual(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == "", "roff warns"
    return " ".join(done.stdout.replace("‐\n", "").split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_manual_has_every_verb_and_option(page: str, verb: str) -> None:
    assert f" {verb} " in page
    assert f" {VERBS[verb].help}." in page
    for option in options(verb):
        assert ", ".join(option.flags) in page


def test_the_manual_has_every_setting_with_its_default(page: str) -> None:
    for name, row in SETTINGS.items():
        default = "derived" if row.default is None else row.kind.text(row.default) or "none"
        assert f" {name} ({row.kind.hint}; default: {default}{'; live' if row.live else ''}) " in page


def test_the_manual_has_every_exit_code(page: str) -> None:
    tail = page[page.index("EXIT STATUS") : page.index("ENVIRONMENT")]
    for code, meaning in EXIT_CODES:
        assert f" {code} {meaning[:1].upper()}{meaning[1:]}." in tail


def test_the_manual_writes_values_as_they_are_typed(page: str) -> None:
    assert " vllm, llamacpp, ollama, tgi, or one of " in page and " http: its endpoint alone; " in page


def test_register_offers_settings_that_exist_with_their_defaults() -> None:
    for name, _, text in SETTING_OPTIONS:
        row = SETTINGS[name]
        if "(default: " in text and name != "exec":
            shown = text.rpartition("(default: ")[2].rstrip(")")
            assert row.kind.parse(shown) == row.default, name


@pytest.mark.parametrize("kind", ["man", *SHELLS])
def test_the_module_prints_it(kind: str) -> None:
    command = [sys.executable, "-m", "cortexctl.docs", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout == (manual() if kind == "man" else SHELLS[kind]())


def test_the_module_refuses_anything_else() -> None:
    command = [sys.executable, "-m", "cortexctl.docs", "html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "man|bash|zsh|fish" in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_verb_and_option(shell: str) -> None:
    text = SHELLS[shell]()
    for verb in VERBS:
        assert verb in text
        for option in options(verb):
            for flag in option.flags:
                assert (flag if shell != "fish" else f"-{'l' if flag[1] == '-' else 's'} {flag.lstrip('-')}") in text


@pytest.fixture
def complete(cli: Cli, fake: FakeDaemon, tmp_path: Path) -> Callable[[str], list[str]]:
    """What bash offers for a line: the real function, with the program on PATH."""
    fake.add(model("llama-70b"), model("llama3:8b"), model("qwen", Secrets=["A_KEY", "HF_TOKEN"]))
    fake.answers["ListEvents"] = ([event(1, Kind="stop"), event(2), event(3)],)
    (tmp_path / "completion").write_text(SHELLS["bash"]())
    program = tmp_path / "cortexctl"
    program.write_text(f"#!{sys.executable}\nfrom cortexctl.main import main\nmain()\n")
    program.chmod(0o755)

    def run(line: str) -> list[str]:
        script = (
            f"source {tmp_path}/completion; compopt() {{ :; }}; COMP_LINE=$1 COMP_POINT=${{#1}}; "
            f'_cortexctl {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", line],
            capture_output=True, text=True, check=True, env=cli.environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cortexctl sta", ["start", "status"]),
        ("cortexctl start ", ["llama-70b", "llama3:8b", "qwen"]),
        ("cortexctl start q", ["qwen"]),
        ("cortexctl --json stop qwen llama-", ["llama-70b"]),
        ("cortexctl start llama3:", ["8b"]),  # readline goes on after the colon
        ("cortexctl start --no", ["--no-block"]),
        ("cortexctl register x --backend ", ["vllm", "llamacpp", "ollama", "tgi"]),
        ("cortexctl register x --backend=ll", ["llamacpp"]),
        ("cortexctl register x --path compl", ["completion"]),
        ("cortexctl register ", []),
        ("cortexctl kill qwen --whom m", ["main"]),
        ("cortexctl show qwen -p MemoryC", ["MemoryCurrent"]),
        ("cortexctl register x --set health.", ["health.interval_seconds="]),
        ("cortexctl register x --set port=", []),
        ("cortexctl set ", ["llama-70b", "llama3:8b", "qwen"]),
        ("cortexctl set qwen health.", ["health.interval_seconds="]),
        ("cortexctl set qwen ll", ["llama-70b", "llama3:8b"]),
        ("cortexctl set qwen port=1 mem", ["memory="]),
        ("cortexctl set qwen port=1 ll", []),
        ("cortexctl secret ", ["set", "unset", "list"]),
        ("cortexctl secret set ", ["llama-70b", "llama3:8b", "qwen"]),
        ("cortexctl secret unset qwen ", ["A_KEY", "HF_TOKEN"]),
        ("cortexctl secret list qwen ", []),
        ("cortexctl events -k ", ["start", "stop"]),
        ("cortexctl events qwen -k sto", ["stop"]),
        ("cortexctl nonsense ", []),
    ],
)
def test_completion_in_bash(complete: Callable[[str], list[str]], line: str, words: list[str]) -> None:
    assert complete(line) == words
