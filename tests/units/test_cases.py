"""Unit texts, case by case, in the form that Podman's Quadlet uses: input and expectations stand in one file.

A file of `cases/` holds one `register` command line as a person types it (`\\` continues it), lines that begin with
`## ` and, for people, comments that begin with `# `. `@HOME@`, `@BIN@` (the caller's PATH) and `@CWD@` stand for folders of
the case's own, `@RUNTIME@` for the user's runtime folder. Before the command line:

    ## file PATH [TEXT]         a file is there (a GGUF one where no text is given); `## folder`, `## program` likewise
    ## link PATH TARGET
    ## map /models              that folder is one of the case's own: a path in it may be written as in the README
    ## python PATH              the waiter's interpreter; `## waiter PATH` the waiter itself
    ## systemd RELEASE          of the manager that reads the unit (252)
    ## other NAME KEY=VALUE...  another model that is registered already

and after it, with values quoted as in a shell:

    ## assert-key-is SECTION KEY VALUE...          these are all its values, as they are written
    ## assert-key-has SECTION KEY VALUE            this is one of them
    ## assert-key-contains SECTION KEY TEXT
    ## assert-no-key SECTION KEY
    ## assert-argv-is WORD...                      the whole command line of the server
    ## assert-exec-arg-sequence WORD...            part of it
    ## assert-exec-no-arg WORD
    ## assert-wait-arg-sequence WORD...            part of the waiter's
    ## assert-env NAME VALUE / assert-no-env NAME
    ## assert-paths-are KEY PATH...                unquoted and complete
    ## assert-bound PATH / assert-not-bound PATH   read-only, exactly this path
    ## assert-warning PART... / assert-no-warning
    ## assert-failed PART...                       registration is refused with a message that has all these parts
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cortexd.checks import secrets_warnings, warnings_of
from cortexd.errors import CortexError
from cortexd.model import ModelSpec, parse_settings
from cortexd.names import FOLDER_TEMPLATE, unit_name
from cortexd.registration import Caller
from cortexd.scope import Scope, user_scope
from cortexd.units import files
from cortexd.units.render import Tools, render_folder_template
from cortexd.units.tools import find_tools
from tests.support import unit_text
from tests.support.units import Generated, generate, systemd_version

CASES = {path.stem: path for path in sorted((Path(__file__).parent / "cases").glob("*.case"))}
PROGRAMS = ("vllm", "llama-server", "ollama", "text-generation-launcher")


@dataclass
class Outcome:
    """What a case's registration came to, and what it expects of it."""

    expectations: list[list[str]]
    name: str = ""
    generated: Generated | None = None
    error: str = ""
    warnings: list[str] = field(default_factory=list)
    release: int = 252
    """Of systemd, that the unit is for."""

    @property
    def text(self) -> str:
        """The unit."""
        assert self.generated is not None, f"registration failed: {self.error}"
        return self.generated.text

    def values(self, section: str, key: str) -> list[str]:
        """Every value of a key."""
        return unit_text.parse(self.text)[section].get(key, [])

    @property
    def argv(self) -> list[str]:
        """The server's command line."""
        (command,) = self.values("Service", "ExecStart")
        return unit_text.argv(command)

    @property
    def wait_argv(self) -> list[str]:
        """The waiter's."""
        (command,) = self.values("Service", "ExecStartPost")
        return unit_text.expanded_argv(command)

    @property
    def environment(self) -> dict[str, str]:
        """What Environment= sets."""
        assignments = [word for value in self.values("Service", "Environment") for word in unit_text.words(value)]
        return dict(word.replace("%%", "%").split("=", 1) for word in assignments)

    def paths(self, key: str) -> list[str]:
        """The paths of a directive."""
        found = [word for value in self.values("Service", key) for word in unit_text.words(value)]
        # The model's own, that is, and not those of /run and the runtime folder, which every model has.
        return [
            path.replace("%%", "%")
            for path in found
            if not path.startswith(("%t/", "-%t/", "-/run/", "-/var/", "-/dev/"))
        ]


def has_sequence(found: list[str], wanted: tuple[str, ...]) -> bool:
    """Whether the words stand in there one after the other."""
    return any(tuple(found[i : i + len(wanted)]) == wanted for i in range(len(found)))


ASSERTIONS: dict[str, Callable[..., bool]] = {
    "assert-key-is": lambda o, section, key, *values: tuple(o.values(section, key)) == values and bool(values),
    "assert-key-has": lambda o, section, key, value: value in o.values(section, key),
    "assert-key-contains": lambda o, section, key, part: any(part in value for value in o.values(section, key)),
    "assert-no-key": lambda o, section, key: o.values(section, key) == [],
    "assert-argv-is": lambda o, *words: tuple(o.argv) == words,
    "assert-exec-arg-sequence": lambda o, *words: has_sequence(o.argv, words),
    "assert-exec-no-arg": lambda o, word: word not in o.argv,
    "assert-wait-arg-sequence": lambda o, *words: has_sequence(o.wait_argv, words),
    "assert-env": lambda o, name, value: o.environment.get(name) == value,
    "assert-no-env": lambda o, name: name not in o.environment,
    "assert-paths-are": lambda o, key, *paths: tuple(o.paths(key)) == paths,
    "assert-bound": lambda o, path: path in o.paths("BindReadOnlyPaths"),
    "assert-not-bound": lambda o, path: path not in o.paths("BindReadOnlyPaths"),
    "assert-warning": lambda o, *parts: any(all(part in w for part in parts) for w in o.warnings),
    "assert-no-warning": lambda o: bool(o.text) and o.warnings == [],
    "assert-failed": lambda o, *parts: bool(o.error) and all(part in o.error for part in parts),
}


def settings_of(arguments: list[str]) -> tuple[str, dict[str, object]]:
    """Name and settings of a command line, as the program reads it: an option is a setting's name with dashes."""
    name, *rest = arguments
    settings: dict[str, object] = {}
    words = iter(rest)
    for word in words:
        if word == "--no-health-check":
            settings["health.enabled"] = "no"
            continue
        option, sign, value = word.partition("=")
        value = value if sign else next(words)
        if option == "--set":
            option, _, value = value.partition("=")
        settings[option.removeprefix("--").replace("-", "_")] = value
    return name, settings


class World:
    """The surroundings of one case."""

    def __init__(self, folder: Path) -> None:
        self.home, self.bin, self.cwd = (folder / part for part in ("home", "bin", "cwd"))
        for path in (self.home, self.bin, self.cwd):
            path.mkdir(parents=True)
        for program in PROGRAMS:
            self.program(str(self.bin / program))
        self.mapped: dict[str, str] = {}
        # Wherever this project lies: only a case's own paths are in /tmp.
        self.tools = dataclasses.replace(
            find_tools("252"), python="/usr/bin/python3", waiter="/usr/lib/cortexd/waiter/__main__.py"
        )
        environment = {**os.environ, "HOME": str(self.home), "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
        self.scope: Scope = user_scope(environment)
        self.others: list[ModelSpec] = []

    def fill(self, text: str) -> str:
        """Placeholders filled in."""
        runtime = self.scope.runtime or Path("/run/user/1000")
        for name, folder in (("HOME", self.home), ("BIN", self.bin), ("CWD", self.cwd), ("RUNTIME", runtime)):
            text = text.replace(f"@{name}@", str(folder))
        for name, path in self.mapped.items():
            text = text.replace(f"{name}/", f"{path}/")
        return text

    def prepare(self, directive: str, *arguments: str) -> None:
        """One line before the command."""
        steps: dict[str, Callable[..., None]] = {"file": self.file, "folder": self.folder, "program": self.program, "link": self.link,
                 "map": self.map, "python": self.python, "waiter": self.waiter, "other": self.other,
                 "systemd": self.systemd}  # fmt: skip
        steps[directive](*arguments)

    def file(self, path: str, text: str = "GGUF, more or less") -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    def folder(self, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)

    def program(self, path: str, text: str = "#!/bin/sh\nexit 1\n") -> None:
        self.file(path, text)
        Path(path).chmod(0o755)

    def link(self, path: str, target: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).symlink_to(target)

    def map(self, path: str) -> None:
        self.mapped[path] = f"{self.home.parent}{path}"

    def python(self, path: str) -> None:
        self.program(path)
        self.tools = dataclasses.replace(self.tools, python=path)

    def waiter(self, path: str) -> None:
        self.file(path, "")
        self.tools = dataclasses.replace(self.tools, waiter=path)

    def systemd(self, release: str) -> None:
        self.tools = dataclasses.replace(self.tools, systemd=int(release))

    def other(self, name: str, *pairs: str) -> None:
        self.others.append(self.register(name, dict(pair.split("=", 1) for pair in pairs)).spec)

    def register(self, name: str, settings: Mapping[str, object]) -> Generated:
        caller = Caller("test", str(self.bin), str(self.cwd))
        return generate(name, settings, scope=self.scope, tools=self.tools, caller=caller, others=self.others)


def play(text: str, folder: Path) -> Outcome:
    """Do what a case says, up to its expectations."""
    world = World(folder)
    outcome = Outcome([])
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(world.fill(line).removeprefix("## ")) if not line.startswith("# ") else []
        if line.startswith("## assert"):
            assert outcome.name, "an expectation stands before the command line"
            outcome.expectations.append(words)
        elif line.startswith("## "):
            assert not outcome.name, f"{line}: stands behind the command line"
            world.prepare(*words)
        elif words:
            assert words[0] == "register" and not outcome.name, f"{line!r}: is no register line, or a second one"
            outcome.name, settings = settings_of(words[1:])
            try:
                outcome.release = world.tools.systemd
                outcome.generated = world.register(outcome.name, settings)
                explicit = parse_settings(settings)
                made = outcome.generated
                outcome.warnings = [
                    *warnings_of(made.spec, made.backend, world.others, explicit),
                    *secrets_warnings(made.spec, made.plan.api_key, ()),
                ]
            except CortexError as e:
                outcome.error = str(e)
    return outcome


def judge(outcome: Outcome) -> None:
    """Every expectation has to hold."""
    assert outcome.expectations, "the case expects nothing"
    if outcome.error:
        assert any(words[0] == "assert-failed" for words in outcome.expectations), outcome.error
    for name, *arguments in outcome.expectations:
        context = outcome.generated.text if outcome.generated else outcome.error
        assert ASSERTIONS[name](outcome, *arguments), f"{name} {shlex.join(arguments)}\n{context}\n{outcome.warnings}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """Every case, played. Not under /tmp, where most would have to be bound."""
    root = Path.home() / "cases"
    yield {name: play(path.read_text(), root / name) for name, path in CASES.items()}
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, outcomes: dict[str, Outcome]) -> None:
    judge(outcomes[name])


def test_every_unit_is_understood_by_systemd(outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    """verify exits with 0 even if it ignored lines: it must have nothing to say."""
    # "verify FILE:ALIAS" has its own meaning for a colon.
    units = [o for o in outcomes.values() if o.generated and o.release <= int(systemd_version().partition(".")[0])]
    texts = {unit_name(o.name).replace(":", "_"): o.text for o in units}
    assert len(texts) == len(units) > 60, "names of models must be unique"
    (tmp_path / FOLDER_TEMPLATE).write_text(files.with_marker(render_folder_template(find_tools("252"))))
    for unit, text in texts.items():
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *(str(tmp_path / unit) for unit in texts)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    "expectation",
    [
        "assert-key-is Service MemoryMax 31G",
        "assert-key-has Service ReadWritePaths /nowhere",
        "assert-key-contains Unit Description other",
        "assert-no-key Service MemoryMax",
        "assert-argv-is llama-server",
        "assert-exec-arg-sequence --host 127.0.0.2",
        "assert-exec-no-arg --host",
        "assert-wait-arg-sequence --port 1",
        "assert-env CUDA_VISIBLE_DEVICES 1",
        "assert-no-env CUDA_VISIBLE_DEVICES",
        "assert-paths-are InaccessiblePaths /",
        "assert-bound /usr",
        "assert-warning port",
        "assert-failed memory",
    ],
)
def test_an_expectation_that_does_not_hold_is_noticed(expectation: str, tmp_path: Path) -> None:
    case = f"## file @HOME@/m.gguf\nregister m --path @HOME@/m.gguf --backend llamacpp\n## {expectation}\n"
    with pytest.raises(AssertionError):
        judge(play(case, tmp_path))


def test_tools_are_this_machines() -> None:
    """What units name is there, and absolute."""
    tools: Tools = find_tools("257.13-1~deb13u1")
    assert tools.systemd == 257
    for program in (tools.python, tools.waiter, tools.env, tools.mkdir):
        assert program.startswith("/") and Path(program).is_file()
