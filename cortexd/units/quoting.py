"""Values as unit-file text. Each directive has its own grammar (systemd.syntax(7), and what systemd 252 and 257 do)."""

from __future__ import annotations

import re

from cortexd.errors import InvalidConfig

_CONTROL = re.compile(r"[\x01-\x1f\x7f]")


def _refuse_nul(value: str) -> None:
    if "\0" in value:
        raise InvalidConfig(f"{value[:40]!r}: a NUL character cannot be passed to a program")


def word(value: str) -> str:
    """One argument of ExecStart=: (with the ":" prefix, so that $ stays as it is) or assignment of Environment=."""
    _refuse_nul(value)
    value = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return '"' + _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", value) + '"'


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


def seconds(value: float) -> str:
    """A time span in seconds, to the millisecond."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def boolean(value: bool) -> str:
    """A boolean, spelled as in the documentation."""
    return "true" if value else "false"
