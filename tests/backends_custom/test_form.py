"""The form of a backend file: what it may say, and how it is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.backends import template
from cortexd.backends.form import Form, parse
from cortexd.errors import InvalidConfig
from tests.backends_custom.forms import SMALL, custom, put, scope_of, spec_of

FILE = "/etc/b.toml"


def small(**changes: str) -> str:
    """The smallest file with keys (as TOML text) added or changed; an empty one is left out."""
    lines = dict(line.split(" = ", 1) for line in SMALL.splitlines())
    return "\n".join(f"{key} = {value}" for key, value in {**lines, **changes}.items() if value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (small(description=""), ["description", "missing"]),
        (small(endpoint=""), ["endpoint", "missing"]),
        (small(command=""), ["command", "missing"]),
        (small(executables=""), ["executables", "name one here, or give python_package"]),
        (small(python_package='"x"'), ["executables", "not both"]),
        (small(python_package='"../x"', executables=""), ["python_package='../x'", "package's name"]),
        (small(descripton='"x"'), ["'descripton' is no key", "did you mean description?"]),
        (small(engine='{ path = "/x", body = {}, bdy = 1 }'), ["engine.'bdy' is no key", "did you mean body?"]),
        (small(description="5"), ["description=5", "text"]),
        (small(description='""'), ["description=''", "empty"]),
        (small(description=f'"{"x" * 5000}"'), ["description='xxx", "longer than 4096", "…"]),
        (small(executables='"serve"'), ["executables='serve'", "list"]),
        (small(executables='["/usr/bin/serve"]'), ["executables='/usr/bin/serve'", "without a folder", "--exec"]),
        (small(executables=str(["x"] * 201)), ["executables=", "201 items, at most 200"]),
        (small(command='["{exec}", "--port", "{prot}"]'), ["command='{prot}'", "unknown placeholder {prot}", "port"]),
        (small(command='["{exec}", "{port}", "{"]'), ["command='{'", "lone '{'", "{{"]),
        (small(command='["{exec}", "{port}", "a}b"]'), ["command='a}b'", "lone '}'", "}}"]),
        (small(command='["{exec}", "{port}", "{}"]'), ["unknown placeholder {}"]),
        (small(command='["{exec}", "{port}", "a\\nb"]'), ["command='a\\nb'", "control character"]),
        (small(command='["{exec}", "{port}", "\\u0000"]'), ["control character"]),
        (small(command='["{exec}", "{port}", 5]'), ["command=5", "text"]),
        (small(command='["serve", "{exec}", "{port}"]'), ["command='serve'", "begin with {exec}", "absolute path"]),
        (small(command='["/bin/sh", "{port}"]'), ["command='/bin/sh'", "{exec} later"]),
        (small(command='["/bin/{name}", "{exec}", "{port}"]'), ["begin with {exec}"]),
        (small(command='[{ when = "gpus", args = ["{exec}"] }, "{port}"]'), ["begin with {exec}"]),
        (small(command='["{exec}"]'), ["{port} or {address}"]),
        (small(command="[]"), ["command=[]", "empty"]),
        (small(command='["{exec}", "{port}", { when = "moon", args = ["x"] }]'), ["command: when='moon'", "not gpus"]),
        (small(command='["{exec}", "{port}", { when = "gpus" }]'), ["command: args", "missing"]),
        (small(command='["{exec}", "{port}", { when = "gpus", args = [] }]'), ["args=[]", "empty"]),
        (small(command='["{exec}", "{port}", { when = "gpus", args = ["x"], if = 1 }]'), ["command: 'if' is no key"]),
        (small(endpoint='"health"'), ["endpoint='health'", "begins with /"]),
        (small(endpoint='"/a b"'), ["endpoint='/a b'", "neither blanks nor a #"]),
        (small(endpoint='"/a#b"'), ["endpoint='/a#b'", "neither blanks nor a #"]),
        (small(paths='["disk"]'), ["paths='disk'", "file, folder, reference"]),
        (small(paths="[]"), ["paths=[]", "empty"]),
        (small(paths='["folder"]', magic='"GGUF"'), ["paths=['folder']", "add file"]),
        (small(magic='"ä"'), ["magic='ä'", "ASCII"]),
        (small(writes='["data"]'), ["writes='data'", "absolute path", "{cache}/"]),
        (small(writes='["{home}/../x"]'), ["writes='{home}/../x'", "'..'"]),
        (small(writes='["/x/{path}"]'), ["writes='/x/{path}'", "unknown placeholder {path}", "home, cache, name"]),
        (small(kill_signal='"SIGKILL"'), ["kill_signal='SIGKILL'", "SIGTERM, SIGINT"]),
        (small(stop_seconds="0"), ["stop_seconds=0", "1 to 3600"]),
        (small(stop_seconds="true"), ["stop_seconds=True", "whole number"]),
        (small(success_exit_status="[0]"), ["success_exit_status=0", "1 to 255"]),
        (small(success_exit_status='["SIGKILL"]'), ["success_exit_status='SIGKILL'", "not SIGKILL"]),
        (small(restart='"sometimes"'), ["restart='sometimes'", "no, on-failure, always"]),
        (small(tasks_max="0"), ["tasks_max=0", "1 to 1000000"]),
        (small(tasks_max_per_gpu="0"), ["tasks_max_per_gpu=0", "1 to 100000"]),
        (small(tasks_max="1", tasks_max_per_gpu="1"), ["tasks_max=1", "not both"]),
        (small(quantizations='["awq"]'), ["quantizations=['awq']", "no argument has {quantization}"]),
        (small(unset_environment='["A B"]'), ["unset_environment='A B'", "variable's name"]),
        (small(unset_environment='["A"]', environment='{ A = "1" }'), ["unset_environment='A'", "leave one of the two out"]),
        (small(unset_environment='["K"]', api_key='"K"'), ["unset_environment='K'"]),
        (small(environment='{ "A=B" = "1" }'), ["environment.A=B", "variable's name"]),
        (small(environment='{ A = 1 }'), ["environment.A=1", "text"]),
        (small(environment='{ A = "{nope}" }'), ["environment.A='{nope}'", "unknown placeholder"]),
        (small(environment='{ MAINPID = "1" }'), ["environment.MAINPID", "systemd's own; leave it out"]),
        (small(environment='{ NOTIFY_SOCKET = "/x" }'), ["environment.NOTIFY_SOCKET", "systemd's own; leave it out"]),
        (small(environment='{ DB_PASSWD = "x" }'), ["environment.DB_PASSWD", "cortexctl secret set MODEL DB_PASSWD"]),
        (small(environment='{ HF_TOKEN = "x" }'), ["environment.HF_TOKEN", "secret", "cortexctl secret set MODEL HF_TOKEN"]),
        (small(environment='"x"'), ["environment='x'", "table"]),
        (small(owned='{ "--x" = "prot" }'), ["owned.--x='prot'", "port"]),
        (small(owned='{ "x" = "port" }'), ["owned.x='x'", "an option such as --host"]),
        (small(hub_cache='"yes"'), ["hub_cache='yes'", "true or false"]),
        (small(engine='{ path = "/x" }'), ["engine.body", "missing"]),
        (small(engine='{ path = "/x", body = "y" }'), ["engine.body='y'", "table"]),
        (small(engine='{ path = "/x", body = { d = 1979-05-27 } }'), ["engine.body=", "JSON"]),
        (small(engine='{ path = "/x", body = { d = nan } }'), ["engine.body=", "JSON"]),
        (small(engine='{ path = "/x", body = { d = "{no}" } }'), ["engine.body='{no}'", "unknown placeholder"]),
        (small(activity='{ path = "/m", counters = [] }'), ["activity.counters=[]", "empty"]),
        (small(activity='{ path = "/m", counters = ["a b"] }'), ["activity.counters='a b'", "metric's name"]),
        ("description = x", ["is no TOML", "line 1"]),
        ("a = " + "[" * 5000, ["TOML"]),
        ("a = " + "9" * 5000, ["TOML"]),
        ("", ["description", "missing"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_file_key_value_and_remedy(text: str, parts: list[str]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(text, FILE)
    message = str(caught.value)
    assert message.startswith(f"{FILE}: ")
    assert all(part in message for part in parts), message
    assert message.isprintable() and len(message) < 1200


@given(text=st.one_of(st.text(), st.text().map(lambda t: SMALL + t)))
def test_whatever_a_file_says_it_is_a_form_or_one_sentence(text: str) -> None:
    try:
        parse(text, FILE)
    except InvalidConfig as e:
        assert str(e).startswith(FILE) and str(e).isprintable()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [*(field.name for field in fields(Form) if "_" not in field.name), "hub_cache", "success_exit_status", "api_key",
        "engine", "activity", "unset_environment", "secret_flags", "tasks_max", "kill_signal", "python_package"]  # fmt: skip


@given(key=st.sampled_from(KEYS), value=ANY)
def test_a_value_of_any_type_is_a_form_or_one_sentence(key: str, value: object) -> None:
    import tomllib

    table = {**tomllib.loads(SMALL), key: value}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda text: table)
        try:
            parse("", FILE)
        except InvalidConfig as e:
            assert str(e).startswith(FILE) and str(e).isprintable()


@given(value=st.text())
def test_a_value_stays_one_word_whatever_it_is(value: str) -> None:
    filled = template.fill("--a={path}{{x}}", {"path": value})
    assert filled == f"--a={value}{{x}}"


def test_placeholders_and_conditions_of_one_model(tmp_path: Path) -> None:
    command = """[
      "{exec}", "--at={address}", "{{{name}}}", "{max_model_len} tokens", "{side_port}",
      { when = "quantization", args = ["-q", "{quantization}"] }, { when = "not quantization", args = ["plain"] },
      { when = "gpus", args = ["-g", "{gpus}"] }, { when = "not gpus", args = ["cpu"] },
      { when = "tensor_parallel > 1", args = ["--tp={tensor_parallel}"] },
      { when = "path is local", args = ["-m", "{path}"] }, { when = "path is reference", args = ["-r", "{path}"] },
    ]"""
    scope = scope_of(tmp_path)
    put(scope, "b", small(command=command, quantizations='["awq"]', endpoint='"/h"'))
    backend = custom("b", scope)
    assert backend.splits
    argv = backend.plan(spec_of(backend, host="::1", path="/m/a {b} 'c'"), scope).argv
    assert argv == (
        "/opt/bin/serve", "--at=[::1]:8000", "{m}", "4096 tokens", "18000", "plain", "-g", "0", "-m", "/m/a {b} 'c'",
    )  # fmt: skip
    more = {"gpus": ("0", "1"), "tensor_parallel": 2, "quantization": "awq", "extra_args": "--x 'y z'"}
    argv = backend.plan(spec_of(backend, **more), scope).argv
    assert argv[5:] == ("-q", "awq", "-g", "0,1", "--tp=2", "-r", "org/name", "--x", "y z")
    assert "cpu" in backend.plan(spec_of(backend, gpus=()), scope).argv


def test_every_key_arrives_in_the_plan(tmp_path: Path) -> None:
    text = (
        SMALL
        + """
    environment = { A = "{name}-{port}", PATH = "/mine" }
    unset_environment = ["B"]
    writes = ["~/w", "{cache}/x/{name}", "/srv/y"]
    reads = ["/srv/r"]
    kill_signal = "SIGINT"
    stop_seconds = 7
    success_exit_status = [3, "SIGUSR1"]
    restart = "always"
    tasks_max = 77
    api_key = "KEY"
    note = "look out"
    hub_cache = true
    owned = { "--port" = "port" }
    secret_flags = { "--key" = "KEY" }
    engine = { path = "/e", body = { model = "{name}", n = [1, { t = "{{" }] } }
    activity = { path = "/metrics", counters = ["a:b_total"] }
    """
    )
    scope = scope_of(tmp_path)
    put(scope, "b", text)
    backend = custom("b", scope)
    spec = spec_of(backend)
    plan = backend.plan(spec, scope)
    assert (spec.health.endpoint, spec.restart.restart, spec.limits.tasks_max) == ("/health", "always", 77)
    assert plan.environment | {"A": "m-8000", "PATH": "/mine", "CUDA_VISIBLE_DEVICES": "0"} == plan.environment
    cache = tmp_path / ".cache"
    assert plan.environment["HF_HOME"] == str(cache / "huggingface")
    assert plan.writes == (cache / "huggingface", tmp_path / "w", cache / "x" / "m", Path("/srv/y"))
    assert plan.reads == (Path("/srv/r"),)
    assert (plan.unset_environment, plan.api_key, backend.note) == (("B",), "KEY", "look out")
    assert (plan.kill_signal, plan.stop_seconds, plan.success_exit_status) == ("SIGINT", 7, ("3", "SIGUSR1"))
    assert plan.engine is not None and plan.activity is not None
    assert (plan.engine.path, json.loads(plan.engine.body)) == ("/e", {"model": "m", "n": [1, {"t": "{"}]})
    assert (plan.activity.path, plan.activity.counters) == ("/metrics", ("a:b_total",))
    for words, remedy in (("--port 1", "use port="), ("--key=x", "secret set m KEY")):
        with pytest.raises(InvalidConfig, match=remedy):
            backend.check(spec_of(backend, extra_args=words))


def test_a_program_run_by_another_one_is_read_by_the_sandbox(tmp_path: Path) -> None:
    scope = scope_of(tmp_path)
    put(scope, "b", small(command='["/bin/sh", "{exec}", "{port}"]'))
    backend = custom("b", scope)
    plan = backend.plan(spec_of(backend), scope)
    assert plan.argv[:2] == ("/bin/sh", "/opt/bin/serve")
    assert Path("/opt/bin/serve") in plan.reads


@pytest.mark.parametrize("key", ["writes", "reads"])
@pytest.mark.parametrize(
    "folder",
    ["/", "/{home}/.cortex", "~/.cortex", "{home}/.cortex/logs", "~/.config", "~/.config/cortex/backends/x"],
)
def test_no_file_opens_what_is_cortexds_own(tmp_path: Path, folder: str, key: str) -> None:
    scope = scope_of(tmp_path)
    path = put(scope, "b", small(**{key: f'["{folder}"]'}))
    backend = custom("b", scope)
    with pytest.raises(InvalidConfig) as caught:
        backend.plan(spec_of(backend), scope)
    assert str(caught.value).startswith(f"{path}: {key}='{folder}': would open {tmp_path}/.co")


def test_which_models_it_takes(tmp_path: Path) -> None:
    scope = scope_of(tmp_path)
    put(scope, "files", small(paths='["file"]', suffixes='[".bin", ".gguf"]', magic='"GGUF"'))
    put(scope, "refs", small(paths='["folder", "reference"]'))
    files, refs = custom("files", scope), custom("refs", scope)
    (tmp_path / "good.bin").write_bytes(b"GGUF....")
    (tmp_path / "bad.bin").write_bytes(b"GGU")
    (tmp_path / "x.txt").write_bytes(b"GGUF")
    files.check(spec_of(files, path=str(tmp_path / "good.bin")))
    refs.check(spec_of(refs, path="org/name"))
    refs.check(spec_of(refs, path=str(tmp_path)))
    for backend, path, words in (
        (files, tmp_path / "bad.bin", "does not begin with 'GGUF'"),
        (files, tmp_path / "x.txt", "files that end with .bin or .gguf"),
        (files, tmp_path, "takes no folder; give a file"),
        (files, "org/name", "takes no reference"),
        (refs, tmp_path / "good.bin", "takes no file; give a folder or a reference"),
    ):
        with pytest.raises(InvalidConfig, match=words):
            backend.check(spec_of(backend, path=str(path)))


def test_settings_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    scope = scope_of(tmp_path)
    put(scope, "b")
    backend = custom("b", scope)
    with pytest.raises(InvalidConfig, match="tensor_parallel=2: b has no such option"):
        backend.check(spec_of(backend, gpus=("0", "1"), tensor_parallel=2))
    with pytest.raises(InvalidConfig, match="quantization='awq'"):
        backend.check(spec_of(backend, quantization="awq"))
