"""What is typed, and what is understood."""

from __future__ import annotations

import pytest

from cortexctl.errors import CtlError
from cortexctl.parser import overview, parse, verb_parser
from cortexctl.verbs import GROUPS, VERBS
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

LINES = [
    (
        "llama-70b --path meta-llama/Llama-2-70b-hf --backend vllm --gpus 0,1,2,3 --tensor-parallel 4 "
        "--memory 128G --max-model-len 8192",
        {
            "path": "meta-llama/Llama-2-70b-hf", "backend": "vllm", "gpus": "0,1,2,3", "tensor_parallel": "4",
            "memory": "128G", "max_model_len": "8192",
        },
    ),
    (
        "llama-awq --path TheBloke/Llama-2-70B-AWQ --backend vllm --quantization awq --gpus 0",
        {"path": "TheBloke/Llama-2-70B-AWQ", "backend": "vllm", "quantization": "awq", "gpus": "0"},
    ),
    (
        "local-gguf --path /models/llama-7b.Q4_K_M.gguf --backend llamacpp --port 8080",
        {"path": "/models/llama-7b.Q4_K_M.gguf", "backend": "llamacpp", "port": "8080"},
    ),
    (
        "tgi-prod --path bigscience/bloom-7b1 --backend tgi --gpus 0,1 --tensor-parallel 2 --host 0.0.0.0 --port 8000",
        {
            "path": "bigscience/bloom-7b1", "backend": "tgi", "gpus": "0,1", "tensor_parallel": "2",
            "host": "0.0.0.0", "port": "8000",
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize("program", ["cortexctl", "cortex-model"])
@pytest.mark.parametrize(("line", "settings"), LINES, ids=[line.split()[0] for line, _ in LINES])
def test_the_lines_of_the_issue(cli: Cli, fake: FakeDaemon, program: str, line: str, settings: dict[str, str]) -> None:
    """Only what was given is sent, under the settings' names, each as text."""
    cli.program = program
    name = line.split()[0]
    assert cli.ok("register", *line.split()) == f"Registered {name} (unit cortex-{name}.service)\n"
    (asked,) = fake.calls("Register")
    assert asked.body[0] == name
    assert asked.body[1] == {key: ("s", value) for key, value in settings.items()}


def register(*words: str) -> dict[str, object]:
    return vars(parse(["register", "a", "--path", "p", *words], "cortexctl"))


@pytest.mark.parametrize("value", ["--mlock", "--foo 1", "--host=1.2.3.4 --x", "-c", "--port", "--json", "a 'b c'", ""])
def test_extra_args_may_begin_with_a_dash(value: str) -> None:
    assert register("--extra-args", value, "--port", "1")["extra_args"] == value
    assert register(f"--extra-args={value}")["extra_args"] == value


@pytest.mark.parametrize("flag", ["--since", "-S"])
def test_values_may_begin_with_a_dash(flag: str) -> None:
    args = parse(["logs", flag, "-1h", "a", "-fn", "20"], "cortexctl")
    assert (args.since, args.follow, args.lines, args.names) == ("-1h", True, "20", ["a"])


@pytest.mark.parametrize("words", [["-n20"], ["-n", "20"], ["--lines", "20"], ["--lines=20"], ["-fn20"], ["-fn", "20"]])
def test_spellings_of_an_option(words: list[str]) -> None:
    assert parse(["logs", *words, "a"], "cortexctl").lines == "20"


def test_options_stand_anywhere() -> None:
    for words in (["--json", "start", "a", "b"], ["start", "a", "--json", "b"], ["start", "--json", "--", "a", "b"]):
        args = parse(words, "cortexctl")
        assert (args.verb, args.names, args.json) == ("start", ["a", "b"], True)


def test_after_two_dashes_everything_is_a_name() -> None:
    assert parse(["start", "--", "--json"], "cortexctl").names == ["--json"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "no verb is given"),
        (["strat"], "unknown verb 'strat'; did you mean 'start'?"),
        (["--jsno"], "unknown option '--jsno'"),
        (["start"], "the following arguments are required: NAME"),
        (["register", "a"], "the following arguments are required: --path"),
        (["register", "--path", "p"], "the following arguments are required: NAME"),
        (["register", "a", "--path", "--port", "1"], "argument --path: expected one argument"),
        (["register", "a", "--path"], "argument --path: expected one argument"),
        (["start", "a", "--no-blok"], "unrecognized arguments: --no-blok"),
        (["start", "a", "--no-bl"], "unrecognized arguments: --no-bl"),
        (["health"], "the following arguments are required: NAME"),
        (["kill", "a", "--whom", "me"], "argument --whom: invalid choice"),
        *(
            (
                ["wait", "a", "--timeout", value],
                f"argument --timeout: {value!r} is no number of seconds; use one such as",
            )
            for value in ("soon", "-1", "nan", "inf", "")
        ),
        (["events", "-n", "-1"], "argument -n/--lines: '-1' is no number of lines; use a whole number from 1 on"),
        (["events", "-n", "0"], "argument -n/--lines: '0' is no number of lines"),
        (["status", "-n", "9999999999"], "argument -n/--lines: '9999999999' is no number of lines"),
        (["logs", "a", "-n", "x"], "argument -n/--lines: 'x' is no number of lines; use a whole number, or all"),
        (["logs", "a", "-n", "-1"], "argument -n/--lines: '-1' is no number of lines"),
        (["backends", "foo"], "backends takes no names, but 'foo' was given; see 'cortexctl backends --help'"),
        (["doctor", "--fix", "foo"], "doctor takes no names, but 'foo' was given"),
        (["register", "a", "b", "--path", "p"], "unrecognized arguments: b;"),
    ],
)
def test_usage_errors(words: list[str], error: str) -> None:
    with pytest.raises(CtlError, match=r"see|try") as caught:
        parse(words, "cortexctl")
    assert caught.value.message.startswith(error)
    assert caught.value.exit_code == 2


def test_numbers_that_are_taken() -> None:
    assert parse(["wait", "a", "--timeout", "0"], "cortexctl").timeout == 0.0
    assert parse(["status", "-n", "0"], "cortexctl").lines == 0
    assert parse(["logs", "a", "-n", "all"], "cortexctl").lines == "all"


@pytest.mark.parametrize(
    ("verb", "usage"),
    [("set", "set [--json] [-q] [-h] NAME... KEY=VALUE..."), ("secret", "[-h] set|unset|list NAME [KEY]"), ("stop", "[-h] NAME [NAME ...]")],
)  # fmt: skip
def test_usage_shows_each_word_once(verb: str, usage: str) -> None:
    assert " ".join(verb_parser(verb, "cortexctl").format_usage().split()).endswith(usage)


def test_usage_errors_end_with_status_2(cli: Cli) -> None:
    assert cli.fails("start", code=2) == "the following arguments are required: NAME; see 'cortexctl start --help'"
    done = cli.run("set", "a", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith('{"error": "Usage", "message": "no KEY=VALUE')


def test_every_verb_is_in_the_overview_once() -> None:
    grouped = [verb for _, verbs in GROUPS for verb in verbs]
    assert sorted(grouped) == sorted(VERBS)
    for verb in VERBS:
        assert f"\n  {verb} " in overview("cortexctl")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_a_function(verb: str) -> None:
    module, _, function = VERBS[verb].run.partition(":")
    assert callable(getattr(__import__(f"cortexctl.actions_{module}", fromlist=[function]), function))
    for action in verb_parser(verb, "cortexctl")._actions:
        assert action.help, f"{verb} {action.dest}"


def test_help_and_version(cli: Cli) -> None:
    assert cli.ok("--version").startswith("cortexctl ")
    assert cli.ok("--help") == cli.ok("-h")
    assert "Exit status:" in cli.ok("--help")
    assert cli.ok("start", "--help").startswith("usage: cortexctl start ")
    assert cli.ok("--help", "start") == cli.ok("start", "--help")
    cli.program = "cortex-model"
    assert cli.ok("--version").startswith("cortex-model ")
