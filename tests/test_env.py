"""The setting env, and what looks like a secret: variables for a server, and who gets to see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexctl.human import alarming
from cortexd import kinds
from cortexd.backends import backend_of
from cortexd.checks import check_spec, secrets_warnings
from cortexd.errors import InvalidConfig
from cortexd.events import shown_settings
from cortexd.kinds import Value, looks_secret, redacted
from cortexd.model import ModelSpec, build_spec, parse_settings
from cortexd.scope import Scope, user_scope

TOKEN = "hf_" + "aB3dE6gH9jK2mN5p"


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return user_scope({"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": "/run/user/1000", "HF_HOME": "/big/hf"})


def spec_of(backend: str, scope: Scope, *env: str, **explicit: Value) -> ModelSpec:
    """A model with these variables, checked as a registration is."""
    kind = backend_of(backend, scope)
    given: dict[str, Value] = {
        "path": "org/name",
        "backend": backend,
        "exec": "/opt/bin/server",
        "env": env,
        **explicit,
    }
    spec = build_spec("m", given, kind.defaults(1))
    check_spec(spec, kind, scope)
    kind.check_plan(spec, kind.plan(spec, scope.with_environment(spec.env)))
    return spec


# --------------------------------------------------------------------------------------------------------------- kind


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("A=1", ("A=1",)), ("A=1 B='two words'", ("A=1", "B=two words")), ("'A=b=c'", ("A=b=c",)), ("A=", ("A=",)), ("a_1=x", ("a_1=x",)),
        (["A=two words", "B=\"'"], ("A=two words", "B=\"'")), ([], ()), ("LD_LIBRARY_PATH=/x PYTHONPATH=/y", ("LD_LIBRARY_PATH=/x", "PYTHONPATH=/y")),
    ],
)  # fmt: skip
def test_assignments(raw: object, value: Value) -> None:
    assert kinds.ENVIRONMENT.parse(raw) == value
    assert kinds.ENVIRONMENT.parse(kinds.ENVIRONMENT.text(value)) == value


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("A", "^A has no value; use A=VALUE"), ("x y", "^use KEY=VALUE"), ("=x", "no name of a variable"), ("1A=x", "no name of a variable"), ("A-B=x", "no name"), ("É=x", "no name"),
        ("B=0 A=1 A=2", "variable A twice"), ("A='x", "blanks"), ("A=x\ny", "control character"), (["A=\0"], "control"), ([1], "text"), (7, "text"),
        ("NOTIFY_SOCKET=/x", "systemd's own"), ("LISTEN_FDS=3", "systemd's own"), ([f"A{n}={'x' * 4000}" for n in range(9)], "longer than"),
    ],
)  # fmt: skip
def test_bad_assignments(raw: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kinds.ENVIRONMENT.parse(raw)


def test_an_error_does_not_show_what_looks_like_a_secret() -> None:
    for raw in (f"HF_TOKEN={TOKEN} B", f"X={TOKEN} B", ["API_KEY=abc123abc", "B"], "SOME_PASSWORD='x abc123abc' B"):
        with pytest.raises(InvalidConfig, match=r"^env=") as caught:
            parse_settings({"env": raw})
        assert TOKEN[4:] not in str(caught.value) and "abc123abc" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- looks like a secret


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "x", True), ("VLLM_API_KEY", "x", True), ("AWS_SECRET_ACCESS_KEY", "x", True), ("DB_PASSWORD", "x", True), ("apikey", "x", True),
        ("OPENAI_API_KEY_2", "x", True), ("X", TOKEN, True), ("X", "sk-" + "a1B2" * 5, True), ("X", "ghp_" + "a1B2" * 9, True),
        ("HF_TOKEN", "", False), ("TOKENIZERS_PARALLELISM", "false", False), ("MAX_TOKENS", "5", False), ("KEYBOARD", "us", False),
        ("HF_HOME", "/big/risk-of-somebody-else", False), ("X", "hf_home", False), ("TOKEN_LIMIT", "5", False),
    ],
)  # fmt: skip
def test_looks_secret(name: str, value: str, secret: bool) -> None:
    assert looks_secret(name, value) is secret


@pytest.mark.parametrize(
    "text",
    [f"--hf-token {TOKEN}", f"--hf-token={TOKEN}", f"--x {TOKEN}", f"--json '{{\"token\": \"{TOKEN}\"}}'", f"--api-key '{TOKEN}'", f"a:{TOKEN},b"],
)  # fmt: skip
def test_redacted(text: str) -> None:
    assert TOKEN[4:] not in redacted(text) and "…" in redacted(text)


def test_what_the_audit_log_keeps() -> None:
    shown = shown_settings(
        {"env": f"HF_HOME=/big HF_TOKEN='two words' X={TOKEN}", "extra_args": "--max-tokens 5", "memory": "1G"}
    )
    assert shown == {"env": "HF_HOME=/big 'HF_TOKEN=…' 'X=…'",
                     "extra_args": "--max-tokens 5", "memory": "1G"}  # fmt: skip
    assert shown_settings({"env": ""}) == {"env": ""}
    assert shown_settings({"env": ["A_KEY=x y", "B=c d"]}) == {"env": "'A_KEY=…' 'B=c d'"}


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("backend", "assignment", "says"),
    [
        ("vllm", "CUDA_VISIBLE_DEVICES=1", "use gpus="), ("llamacpp", "HIP_VISIBLE_DEVICES=1", "use gpus="), ("vllm", "VLLM_PORT=1", "for an option"),
        ("llamacpp", "LLAMA_ARG_MODEL=/x", "LLAMA_ARG_MODEL"), ("tgi", "PORT=1", "for an option"), ("llamacpp", "LLAMA_ARG_THREADS=4", "or extra_args"), ("ollama", "OLLAMA_HOST=0.0.0.0", "use port="),
        ("ollama", "OLLAMA_CONTEXT_LENGTH=1", "use max_model_len="), ("vllm", "HF_HOME=relative", "absolute path"), ("vllm", "HF_HOME=/a/../b", "absolute path"),
        ("vllm", "HF_HOME=@HOME@", "no model may see"), ("vllm", "HF_HOME=@HOME@/.cortex/x", "no model may see"), ("tgi", "HF_HUB_CACHE=/", "no model may see"),
    ],
)  # fmt: skip
def test_what_settings_give_is_not_for_env(scope: Scope, backend: str, assignment: str, says: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^env=.*{says}"):
        spec_of(backend, scope, assignment.replace("@HOME@", str(scope.home)))


@pytest.mark.parametrize(
    ("backend", "assignment"),
    [("vllm", "CUDA_VISIBLE_DEVICES=0"), ("vllm", "LD_LIBRARY_PATH=/x"), ("vllm", "PATH=/x"), ("vllm", "VLLM_NO_USAGE_STATS=0"), ("tgi", "API_KEY=x"),
     ("vllm", "VLLM_API_KEY=x")],
)  # fmt: skip
def test_what_is_the_callers_to_say(scope: Scope, backend: str, assignment: str) -> None:
    assert spec_of(backend, scope, assignment).env == (assignment,)


def test_a_cache_folder_of_ones_own_is_the_one_that_is_opened(scope: Scope) -> None:
    spec = spec_of("vllm", scope, "HF_HOME=/mine/hf")
    plan = backend_of("vllm", scope).plan(spec, scope.with_environment(spec.env))
    assert (plan.environment["HF_HOME"], plan.environment["HF_HUB_CACHE"]) == ("/mine/hf", "/mine/hf/hub")
    assert Path("/mine/hf") in plan.writes and Path("/big/hf") not in plan.writes


# ------------------------------------------------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("host", "key", "secrets", "env", "extra", "open_"),
    [
        ("0.0.0.0", "API_KEY", (), (), "", True), ("::", "API_KEY", ("HF_TOKEN",), (), "", True), ("10.0.0.1", "", (), (), "", True),
        ("0.0.0.0", "", ("API_KEY",), (), "", True), ("0.0.0.0", "API_KEY", (), ("API_KEY=",), "", True),
        ("0.0.0.0", "API_KEY", ("API_KEY",), (), "", False), ("0.0.0.0", "API_KEY", (), ("API_KEY=x",), "", False),
        ("0.0.0.0", "API_KEY", (), (), "--api-key-file /x", False), ("127.0.0.1", "API_KEY", (), (), "", False), ("::1", "", (), (), "", False),
    ],
)  # fmt: skip
def test_open_to_all(
    scope: Scope, host: str, key: str, secrets: tuple[str, ...], env: tuple[str, ...], extra: str, open_: bool
) -> None:
    spec = spec_of("vllm", scope, *env, host=host, extra_args=extra)
    found = [w for w in secrets_warnings(spec, key, secrets) if alarming(w)]
    assert len(found) == open_
    if found:
        remedy = f"'cortexctl secret set m {key} --generate' or host=127.0.0.1" if key else "host=127.0.0.1"
        assert found[0] == (
            f"host={host}: anybody who reaches this machine can use the model, and it asks for no key; {remedy}"
        )


def test_a_secret_that_is_none_gets_a_hint(scope: Scope) -> None:
    spec = spec_of("vllm", scope, f"HF_TOKEN={TOKEN}", "A_KEY=x", "PLAIN=1")
    hints = list(secrets_warnings(spec, "VLLM_API_KEY", ("A_KEY",)))
    assert len(hints) == 2 and not any(TOKEN in hint for hint in hints)
    assert "HF_TOKEN looks like a secret" in hints[0] and "'cortexctl secret set m HF_TOKEN'" in hints[0]
    assert "A_KEY is a secret, too" in hints[1]
    (hint,) = secrets_warnings(spec_of("vllm", scope, extra_args=f"--x {TOKEN}"), "VLLM_API_KEY", ())
    assert hint.startswith("extra_args:") and TOKEN not in hint


@pytest.mark.parametrize(
    ("backend", "flag", "variable"),
    [("vllm", "--api-key", "VLLM_API_KEY"), ("vllm", "--api_key", "VLLM_API_KEY"), ("vllm", "--hf-token", "HF_TOKEN"),
     ("llamacpp", "--api-key", "LLAMA_API_KEY"), ("llamacpp", "--hf-token", "HF_TOKEN"), ("tgi", "--api-key", "API_KEY")],
)  # fmt: skip
@pytest.mark.parametrize("sign", [" ", "="])
def test_a_secret_among_the_arguments_is_refused(
    scope: Scope, backend: str, flag: str, variable: str, sign: str
) -> None:
    with pytest.raises(
        InvalidConfig, match=f"^extra_args='{flag.replace('_', '-')}'.*secret set m {variable}'"
    ) as caught:
        spec_of(backend, scope, extra_args=f"{flag}{sign}{TOKEN}")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("backend", ["vllm", "llamacpp", "tgi"])
def test_every_backend_with_a_key_names_its_variable(scope: Scope, backend: str) -> None:
    kind = backend_of(backend, scope)
    plan = kind.plan(spec_of(backend, scope), scope)
    assert plan.api_key and plan.api_key == kind.secret_flags["--api-key"]
