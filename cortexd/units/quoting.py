"""Values as unit-file text. Each directive has its own grammar (systemd.syntax(7), and what systemd 252 and 257 do)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from cortexd.errors import InvalidConfig

_CONTROL = re.compile(r"[\x01-\x1f\x7f]")
_MAX_UNIT = 1 << 20  # bytes; systemd reads no line that is longer (LONG_LINE_MAX of fileio.h), and we no longer file
_MAX_WORD = (1 << 17) - 1  # bytes that one argument or variable of a program may have (MAX_ARG_STRLEN, execve(2))


def _refuse_nul(value: str) -> None:
    if "\0" in value:
        raise InvalidConfig(f"{value[:40]!r}: a NUL character cannot be passed to a program")


def word(value: str) -> str:
    """One argument of ExecStart=: (with the ":" prefix, so that $ stays as it is) or assignment of Environment=."""
    _refuse_nul(value)
    value = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return '"' + _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", value) + '"'


@lru_cache(maxsize=512)  # most of them are the same in all units
def expanded_word(value: str) -> str:
    """The same for a command without the ":" prefix, where $ would be expanded."""
    return word(value).replace("$", "$$")


def path(value: str) -> str:
    """One path of ReadWritePaths=, BindReadOnlyPaths= and their like, which unquote but know no escapes for controls."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise InvalidConfig(f"path {value!r}: has a control character, which a unit cannot name; rename it")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def file_pattern(value: str) -> str:
    """The path of EnvironmentFile=, which is not unquoted but is a pattern (glob(7)). Raises InvalidConfig."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise InvalidConfig(f"path {value!r}: has a control character, which a unit cannot name; rename it")
    return re.sub(r"[\\*?\[\]]", lambda match: "\\" + match[0], value).replace("%", "%%")


def instance_of_path(value: str) -> str:
    """A path as the instance of a template unit (systemd-escape --path; a template gets it back as %f)."""
    trimmed = re.sub("/+", "/", value).strip("/")
    if not trimmed:
        return "-"
    out = []
    for i, byte in enumerate(trimmed.encode()):
        char = chr(byte)
        if char == "/":
            out.append("-")
        elif (char.isascii() and char.isalnum()) or char in ":_" or (char == "." and i > 0):
            out.append(char)
        else:
            out.append(f"\\x{byte:02x}")
    return "".join(out)


def check_length(text: str, words: Iterable[str]) -> None:
    """Refuse a unit that is longer than what is read, and one whose arguments and variables (`words`) no program could be
    given. Raises InvalidConfig."""
    length = len(text.encode("utf-8", "replace"))
    if length > _MAX_UNIT:
        raise InvalidConfig(
            f"the unit would have {length} bytes, at most {_MAX_UNIT} can be read; give fewer or shorter values"
        )
    for given in words:
        if len(given.encode("utf-8", "replace")) > _MAX_WORD:
            raise InvalidConfig(
                f"{given[:40]!r}…: is longer than the {_MAX_WORD} bytes that a program can be given; shorten it"
            )


def seconds(value: float) -> str:
    """A time span in seconds, to the millisecond."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def boolean(value: bool) -> str:
    """A boolean, spelled as in the documentation."""
    return "true" if value else "false"
