"""Settings that want to be more than values: refused in one sentence, or exactly what the server gets, and nothing else."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cortexd.definitions import Definer
from cortexd.errors import CortexError, InvalidConfig
from cortexd.model import parse_settings
from cortexd.scope import Scope
from cortexd.units import files
from cortexd.units.render import Tools
from tests.hostile.values import HUGE, NASTY, TEXTS, shape
from tests.support import unit_text
from tests.support.units import Generated, generate

CASES = 10_000
TOOLS = Tools("/usr/bin/python3", "/opt/cortex/waiter/__main__.py", "/usr/bin/env", "/usr/bin/mkdir", 252)
PURE: dict[str, Any] = {
    "deadline": None, "database": None, "phases": [Phase.explicit, Phase.generate], "derandomize": False,
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip

NAMES = st.one_of(st.just("model"), st.from_regex(r"[A-Za-z0-9._:-]{1,70}", fullmatch=True), TEXTS)
VARIABLES = st.one_of(st.from_regex(r"X_[A-Z0-9]{0,6}", fullmatch=True), TEXTS)
ENVIRONMENT = st.lists(st.builds("{}={}".format, VARIABLES, TEXTS), max_size=3)
ARGUMENTS = st.one_of(st.lists(TEXTS, max_size=4).map(lambda words: ["--x", *words]).map(shlex.join), TEXTS)
# What a unit says of a server whose readiness something waits for; a model of no endpoint has none of them.
OF_THE_WAITER = (
    "ExecStartPost", "BindReadOnlyPaths", "NotifyAccess", "TimeoutStartSec", "RuntimeDirectory", "RuntimeDirectoryMode",
)  # fmt: skip
TEMPLATE = """executables = ["llama-server"]
command = ["{exec}", "--model", "{path}", "--port", "{port}", %s]
endpoint = "/health"
[environment]
X_OWN = %s
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scope, Path]:
    """A home, and a folder of models and programs."""
    folder = tmp_path_factory.mktemp("world")
    home = folder / "home"
    scope = Scope(
        bus_address="", system_bus_address="", home=home, unit_folder=home / ".config/systemd/user", data=home / ".cortex",
        cache=home / ".cache", search_path="/usr/bin:/bin", backend_folders=(home / ".config/cortex/backends",),
    )  # fmt: skip
    scope.unit_folder.mkdir(parents=True)
    scope.backend_folders[0].mkdir(parents=True)
    (folder / "llama-server").write_text("#!/bin/sh\n")
    (folder / "llama-server").chmod(0o755)
    (folder / "model.gguf").write_bytes(b"GGUF")
    return scope, folder


def make(world: tuple[Scope, Path], model: str = "model", /, **given: Any) -> Generated | None:
    """What a registration comes to; None where it is refused in words that a person can read."""
    scope, folder = world
    settings = {
        "path": str(folder / "model.gguf"), "exec": str(folder / "llama-server"), "backend": "llamacpp", "port": 9000, "gpus": "none",
        **given,
    }  # fmt: skip
    try:
        return generate(model, settings, scope=scope, tools=TOOLS)
    except CortexError as e:
        words = str(e)
        assert words and len(words) < 2000, f"no sentence: {words[:100]!r}"
        return None


def check(world: tuple[Scope, Path], made: Generated, **more: int) -> dict[str, list[str]]:
    """The unit has the directives of a harmless model's, and `more` of some; returns its service section."""
    harmless = make(world)
    assert harmless is not None
    text = files.with_marker(files.settings_line(_plain(made)) + made.text.split("\n\n", 1)[1])
    found, wanted = shape(text), shape(harmless.text)
    assert list(found) == list(wanted)
    for section, keys in wanted.items():
        extra = Counter(found[section])
        extra.subtract(keys)
        changed = {key: count for key, count in extra.items() if count and key not in ("Requires", "After")}
        assert changed == ({k: v for k, v in more.items() if v} if section == "[Service]" else {}), changed
    assert files.settings_in(text) is not None
    return unit_text.parse(made.text)["Service"]


def _plain(made: Generated) -> dict[str, object]:
    return {
        "extra_args": made.spec.extra_args,
        "env": list(made.spec.env),
        "path": made.spec.path,
        "host": made.spec.host,
    }


def environment(service: dict[str, list[str]]) -> dict[str, str]:
    """What the Environment= lines say, read back."""
    pairs = [unit_text.words(line) for line in service.get("Environment", [])]
    assert all(len(pair) == 1 for pair in pairs)
    return dict(pair[0].replace("%%", "%").split("=", 1) for pair in pairs)


def test_any_value_is_refused_or_arrives_as_it_is(world: tuple[Scope, Path]) -> None:
    seen = Counter[str]()

    @settings(max_examples=CASES, **PURE)
    @given(
        NAMES,
        ARGUMENTS,
        ENVIRONMENT,
        st.one_of(st.just("127.0.0.1"), st.just("::"), TEXTS),
        st.one_of(st.just("/health"), st.just("none"), TEXTS),
    )
    def case(name: str, arguments: str, variables: list[str], host: str, endpoint: str) -> None:
        # One of them is hostile at a time in most cases, since a refusal of one hides what becomes of the others.
        which = seen["cases"] % 6
        seen["cases"] += 1
        given: dict[str, object] = {
            "extra_args": arguments if which in (0, 5) else "", "env": variables if which in (1, 5) else [],
            "host": host if which in (2, 5) else "127.0.0.1", "health.endpoint": endpoint if which in (3, 5) else "/health",
        }  # fmt: skip
        made = make(world, name if which in (4, 5) else "model", **given)
        if made is None:
            seen["refused"] += 1
            return
        seen["accepted"] += 1
        own = dict(item.split("=", 1) for item in made.spec.env)
        new = set(own) - set(made.plan.environment)
        unwaited = {} if made.spec.health.endpoint else dict.fromkeys(OF_THE_WAITER, -1)
        service = check(world, made, Environment=len(new), **unwaited)
        assert unit_text.argv(service["ExecStart"][0]) == list(made.plan.argv)
        words = shlex.split(str(given["extra_args"]))
        assert not words or list(made.plan.argv)[-len(words) :] == words
        if which in (1, 5):
            assert own == dict(item.split("=", 1) for item in variables)
        assert environment(service) == {**made.plan.environment, **own}

    case()
    assert seen["cases"] >= CASES
    # Neither everything refused nor everything let through: both ways are walked.
    assert min(seen["refused"], seen["accepted"]) > CASES // 20, seen


@pytest.mark.parametrize("setting", ["path", "exec", "ReadWritePaths"])
def test_paths_of_any_name(world: tuple[Scope, Path], setting: str) -> None:
    """Files that are really there under such names."""
    _, folder = world
    accepted = 0
    pieces = [piece.replace("/", "") for piece in [*NASTY, "".join(NASTY[:12])]]
    for number, piece in enumerate(
        piece for piece in pieces if piece and "\0" not in piece and len(piece.encode("utf-8", "replace")) < 200
    ):
        end = b".gguf" if setting == "path" else b""
        place = os.fsencode(str(folder / f"{setting}{number}-")) + piece.encode("utf-8", "surrogatepass") + end
        path = os.fsdecode(place)
        Path(path).write_text("GGUF")
        if setting == "exec":
            Path(path).chmod(0o755)
        made = make(world, **{setting: [path] if setting == "ReadWritePaths" else path})
        if made is None:
            continue
        accepted += 1
        service = unit_text.parse(made.text)["Service"]
        shape(made.text)
        assert unit_text.argv(service["ExecStart"][0]) == list(made.plan.argv)
        opened = [
            *service.get("ReadWritePaths", []),
            *service.get("BindPaths", []),
            *service.get("BindReadOnlyPaths", []),
        ]
        assert setting == "exec" or path in [
            word.replace("%%", "%") for line in opened for word in unit_text.words(line)
        ]
        assert path in made.plan.argv or setting == "ReadWritePaths"
    assert accepted > 10


@pytest.mark.parametrize("value", HUGE, ids=lambda value: f"{value[0]!a}x{len(value)}")
@pytest.mark.parametrize(
    "setting", ["extra_args", "env", "host", "path", "health.endpoint", "quantization", "name", "ReadWritePaths"]
)
def test_what_is_huge_is_refused_or_fits(world: tuple[Scope, Path], setting: str, value: str) -> None:
    given: dict[str, Any] = {setting: value}
    if setting == "env":
        given = {setting: [f"X_HUGE={value}"]}
    elif setting == "ReadWritePaths":
        given = {setting: [f"/{value}"]}
    elif setting == "extra_args":
        given = {setting: f"--x {shlex.quote(value)}"}
    made = make(world, given.pop("name", "model"), **given)
    if made is not None:
        assert max(map(len, made.plan.argv)) < 131_072  # MAX_ARG_STRLEN of execve(2)
        shape(made.text)


@pytest.mark.parametrize(
    "given",
    [
        {"env": [f"X_{n}=" + "\U0001f999" * 4000 for n in range(8)], "extra_args": "--x " + "\U0001f999" * 4000},
        {"ReadWritePaths": [f"/srv/{n}" for n in range(20_000)]},
        {"gpus": [f"GPU-{n:040x}" for n in range(20_000)]},
    ],
    ids=["texts", "paths", "gpus"],
)
def test_many_long_ones_together_are_refused_or_a_unit_that_systemd_reads(
    world: tuple[Scope, Path], given: dict[str, object]
) -> None:
    """No file is longer than what is read (1 MiB), and no argument or variable than what execve(2) takes."""
    scope, folder = world
    explicit = parse_settings(
        {"path": str(folder / "model.gguf"), "exec": str(folder / "llama-server"), "backend": "llamacpp", **given}
    )
    try:
        made = Definer(scope, TOOLS).define(
            "model", {key: value for key, value in explicit.items() if value is not None}
        )
    except InvalidConfig as e:
        assert "env" not in given and re.search(
            "at most 1048576 can be read|is longer than the 131071 bytes|names 20000 folders, and 256", str(e)
        )
        return
    assert len(made.text.encode()) <= 1 << 20
    shape(made.text)


@settings(max_examples=1500, **PURE)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_values_of_a_backend_file(world: tuple[Scope, Path], arguments: list[str], variable: str) -> None:
    """What stands in a TOML file of somebody's is no more than arguments and values, either."""
    scope, _ = world
    quoted = [_toml(word) for word in arguments]
    text = TEMPLATE % (", ".join(quoted), _toml(variable))
    file = scope.backend_folders[0] / "odd.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    made = make(world, backend="odd")
    if made is None:
        return
    service = unit_text.parse(made.text)["Service"]
    assert set(shape(made.text)) == {"[Unit]", "[Service]", "[Install]"}
    assert len(service["ExecStart"]) == 1 and "ExecStartPre" not in service and "ExecStop" not in service
    assert unit_text.argv(service["ExecStart"][0]) == list(made.plan.argv)
    assert environment(service)["X_OWN"] == made.plan.environment["X_OWN"]
    if not any(re.search(r"[{}]", word) for word in arguments):
        assert list(made.plan.argv)[-len(arguments) :] == arguments


def _toml(value: str) -> str:
    """A basic string of TOML; what TOML cannot say stays as it is, for the reader to refuse."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escaped(c) for c in value) + '"'


def _escaped(c: str) -> str:
    return c if 0xD800 <= ord(c) < 0xE000 else f"\\U{ord(c):08x}"


def test_a_refusal_repeats_no_control_characters(world: tuple[Scope, Path]) -> None:
    scope, folder = world
    for value in ("\x1b[2J", "\x9b2J", "\u202e", "a\nb"):
        for setting in ("host", "quantization", "backend", "health.endpoint", "exec"):
            given: dict[str, object] = {
                "path": str(folder / "model.gguf"),
                "exec": str(folder / "llama-server"),
                "backend": "llamacpp",
                "gpus": "none",
            }
            with pytest.raises(CortexError) as refused:
                generate("model", {**given, setting: value}, scope=scope, tools=TOOLS)
            assert isinstance(refused.value, InvalidConfig) or setting == "backend"
            assert str(refused.value).isprintable(), (setting, str(refused.value))
