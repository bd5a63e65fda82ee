"""Unit files as a reader of systemd.syntax(7) sees them: sections, keys, words."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|(.))")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]+)')


def parse(text: str) -> dict[str, dict[str, list[str]]]:
    """Every value of every key, by section, as written."""
    sections: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def words(value: str) -> list[str]:
    """The words of a value, unquoted; %% and $$ are left to the caller."""
    found = []
    for quoted, bare in _WORD.findall(value):
        found.append(_ESCAPE.sub(_unescape, quoted) if quoted or not bare else bare)
    return found


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else {"n": "\n", "t": "\t"}.get(match[2], match[2])


def argv(value: str) -> list[str]:
    """The command of an ExecStart= with the ":" prefix."""
    assert value.startswith(":"), value
    return [word.replace("%%", "%") for word in words(value[1:])]


def expanded_argv(value: str, **variables: str) -> list[str]:
    """The command of one without it: ${NAME} is replaced, $$ is $."""
    found = []
    for word in words(value):
        for name, text in variables.items():
            word = word.replace("${" + name + "}", text)
        found.append(word.replace("%%", "%").replace("$$", "$"))
    return found
