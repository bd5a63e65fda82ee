"""The form of a backend file: TOML in, a checked Form out. Pure.

docs/backends.md describes every key. Whatever is wrong is one InvalidConfig that names the file, the key, its value and
the remedy; nothing of a file with a fault is used.
"""

from __future__ import annotations

import json
import re
import signal
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cortexd.backends import template
from cortexd.backends.table import Table
from cortexd.errors import InvalidConfig
from cortexd.kinds import is_systemds_variable, looks_secret
from cortexd.model import SETTINGS

_ENDPOINT = re.compile(r"/[!-\"$-~]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_FLAG = re.compile(r"-[!-~]+")
_STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_RESTART = ("no", "on-failure", "always")
PATH_KINDS = ("file", "folder", "reference")


@dataclass(frozen=True, slots=True)
class Words:
    """Part of a command: these words, where the condition holds; an empty one always does."""

    when: str
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A checked backend file. Texts are templates (see cortexd.backends.template)."""

    description: str
    executables: tuple[str, ...]
    python_package: str
    version: tuple[str, ...]
    command: tuple[Words, ...]
    endpoint: str
    paths: tuple[str, ...]
    suffixes: tuple[str, ...]
    magic: bytes
    quantizations: tuple[str, ...]
    environment: Mapping[str, str]
    unset_environment: tuple[str, ...]
    hub_cache: bool
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    kill_signal: str
    stop_seconds: int
    success_exit_status: tuple[str, ...]
    restart: str
    tasks_max: int
    tasks_max_per_gpu: int
    owned: Mapping[str, str]
    secret_flags: Mapping[str, str]
    api_key: str
    engine_path: str
    engine_body: Any
    activity_path: str
    activity_counters: tuple[str, ...]
    note: str

    @property
    def templates(self) -> Iterator[str]:
        """The words of the command and the values of its variables."""
        for part in self.command:
            yield from part.words
        yield from self.environment.values()

    @property
    def splits(self) -> bool:
        """Whether anything in it depends on the number of GPUs that share the model."""
        asked = any(part.when.startswith("tensor_parallel") for part in self.command)
        return asked or any("tensor_parallel" in template.names_in(text) for text in self.templates)


def parse(text: str, file: Path | str) -> Form:
    """A backend file's text as a Form. Raises InvalidConfig."""
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise InvalidConfig(f"{file}: is nested too deeply for TOML; see docs/backends.md for the form") from None
    except ValueError as e:
        raise InvalidConfig(f"{file}: is no TOML ({e}); correct that place") from None
    return _form(Table(table, str(file)))


def _form(table: Table) -> Form:
    description = table.text("description", check=_not_empty)
    executables = table.texts("executables", _program)
    package = table.text("python_package", "", _matches(_PACKAGE, "must be a package's name, such as sglang"))
    if executables and package:
        raise table.wrong("executables", list(executables), "give either this or python_package, and not both")
    if not executables and not package:
        raise table.wrong("executables", [], "no program is named; name one here, or give python_package")
    quantizations = table.texts("quantizations", _not_empty)
    tasks_max = table.whole("tasks_max", 0, 1, 1_000_000)
    per_gpu = table.whole("tasks_max_per_gpu", 0, 1, 100_000)
    if tasks_max and per_gpu:
        raise table.wrong("tasks_max", tasks_max, "give either this or tasks_max_per_gpu, and not both")
    engine, activity = table.inner("engine"), table.inner("activity")
    form = Form(
        description=description,
        executables=executables,
        python_package=package,
        version=table.texts("version", _not_empty),
        command=_command(table),
        endpoint=table.text("endpoint", check=_endpoint),
        paths=table.texts("paths", _one_of(PATH_KINDS), PATH_KINDS, least=1),
        suffixes=table.texts("suffixes", _not_empty),
        magic=table.text("magic", "", _ascii).encode(),
        quantizations=quantizations,
        environment=table.pairs("environment", _setting_variable, template.check),
        unset_environment=table.texts("unset_environment", _variable),
        hub_cache=table.boolean("hub_cache"),
        writes=table.texts("writes", _folder),
        reads=table.texts("reads", _folder),
        kill_signal=table.text("kill_signal", "SIGTERM", _one_of(_STOP_SIGNALS)),
        stop_seconds=table.whole("stop_seconds", 20, 1, 3600),
        success_exit_status=tuple(_status(table, value) for value in table.items("success_exit_status", ())),
        restart=table.text("restart", "on-failure", _one_of(_RESTART)),
        tasks_max=tasks_max,
        tasks_max_per_gpu=per_gpu,
        owned=table.pairs("owned", _flag, _one_of(SETTINGS)),
        secret_flags=table.pairs("secret_flags", _flag, _variable),
        api_key=table.text("api_key", "", _variable),
        engine_path=engine.text("path", check=_endpoint) if engine else "",
        engine_body=_body(engine) if engine else {},
        activity_path=activity.text("path", check=_endpoint) if activity else "",
        activity_counters=activity.texts("counters", _matches(_METRIC, "must be a metric's name"), None, least=1)
        if activity
        else (),
        note=table.text("note", ""),
    )
    for part in (table, engine, activity):
        if part:
            part.end()
    _agree(form, table)
    return form


def _agree(form: Form, table: Table) -> None:
    """What the keys must be together."""
    used = {name for text in form.templates for name in template.names_in(text)}
    if "exec" not in used or form.command[0].when or form.command[0].words[0] != "{exec}":
        first = form.command[0].words[0] if not form.command[0].when else ""
        if "exec" not in used or not first.startswith("/") or "{" in first:
            raise table.wrong(
                "command", first, "must begin with {exec}, or with a program's absolute path and have {exec} later"
            )
    if "port" not in used and "address" not in used:
        raise table.wrong(
            "command", "…", "must tell the server its port; use {port} or {address}, here or in environment"
        )
    if form.quantizations and "quantization" not in used:
        raise table.wrong("quantizations", list(form.quantizations), "is of no use: no argument has {quantization}")
    if (form.suffixes or form.magic) and "file" not in form.paths:
        raise table.wrong("paths", list(form.paths), "suffixes and magic are for files; add file, or leave them out")
    for variable in form.unset_environment:
        if variable in form.environment or variable == form.api_key:
            raise table.wrong("unset_environment", variable, "is set by this file, too; leave one of the two out")


def _command(table: Table) -> tuple[Words, ...]:
    """Words one by one; those that stand together share a part."""
    parts: list[Words] = []
    for item in table.items("command"):
        if isinstance(item, dict):
            inner = Table(item, table.file, "command: ")
            when = inner.text("when", check=_one_of(template.CONDITIONS))
            parts.append(Words(when, inner.texts("args", template.check, None, least=1)))
            inner.end()
        else:
            parts.append(Words("", (table.checked("command", item, template.check),)))
    if not parts:
        raise table.wrong("command", [], "is empty; begin with {exec}")
    return tuple(parts)


def _body(engine: Table) -> Any:
    body = engine.take("body")
    try:
        text = json.dumps(_each_text(body, lambda text: engine.checked("body", text, template.check)), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise engine.wrong("body", body, "must be what JSON can say; write it as a TOML table") from None
    if not isinstance(body, dict) or len(text) > 4096:
        raise engine.wrong("body", body, "must be a table of at most 4096 bytes of JSON")
    return body


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed; keys stay."""
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def body_text(body: Any, values: Mapping[str, str]) -> str:
    """A request's body as JSON, its texts filled in."""
    return json.dumps(_each_text(body, lambda text: template.fill(text, values)))


def _status(table: Table, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255:
        return str(value)
    # By SIGKILL a dead server is ended, which has to stay a failure for Restart=on-failure.
    if isinstance(value, str) and value in signal.Signals.__members__ and value not in ("SIGKILL", "SIGSTOP"):
        return value
    raise table.wrong(
        "success_exit_status", value, "must be a status from 1 to 255, or a signal such as SIGUSR1 (not SIGKILL)"
    )


# What a text may be: each raises ValueError with the remedy.


def _matches(pattern: re.Pattern[str], remedy: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if not pattern.fullmatch(text):
            raise ValueError(remedy)

    return check


def _one_of(allowed: Collection[str]) -> Callable[[str], None]:
    def check(text: str) -> None:
        if text not in allowed:
            raise ValueError(f"use one of {', '.join(allowed)}")

    return check


def _not_empty(text: str) -> None:
    if not text.strip():
        raise ValueError("is empty; say something")


def _ascii(text: str) -> None:
    if not (text.isascii() and len(text) <= 16):
        raise ValueError("must be at most 16 ASCII characters with which the file begins")


def _program(text: str) -> None:
    if not text or "/" in text:
        raise ValueError("must be a program's name, without a folder; --exec names a file")


def _folder(text: str) -> None:
    template.check(text, template.IN_FOLDERS)
    if not text.startswith(("/", "~/", "{home}/", "{cache}/")):
        raise ValueError("must be an absolute path, or begin with ~/, {home}/ or {cache}/")
    if ".." in text.split("/"):
        raise ValueError("has a '..', which a unit cannot name; write it without")


_endpoint = _matches(_ENDPOINT, "must be a path that begins with / and has neither blanks nor a #")
_variable = _matches(_VARIABLE, "must be a variable's name: letters, digits and _")
_flag = _matches(_FLAG, "must be an option such as --host")


def _setting_variable(text: str) -> None:
    _variable(text)
    if is_systemds_variable(text):
        raise ValueError("is systemd's own; leave it out")
    if looks_secret(text, "a value"):
        raise ValueError(
            f"a secret does not belong in a file that units are made of; use 'cortexctl secret set MODEL {text[:60]}'"
        )
