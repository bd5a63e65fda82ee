"""Kinds of setting: how a value is read from what a person types, shown again, and sent over D-Bus.

`parse` takes text or the kind's own type and raises ValueError with what is allowed; `text` is its inverse.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

Value = str | int | float | bool | tuple[str, ...]

INFINITY = 2**64 - 1
"""systemd's "infinity" for sizes and counts: no limit."""

KIB, MIB, GIB, TIB = (1024**n for n in (1, 2, 3, 4))
_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_TRUE = ("1", "yes", "y", "true", "t", "on")
_FALSE = ("0", "no", "n", "false", "f", "off")
# Controls, line separators, surrogates; and Unicode's noncharacters, which systemd takes for broken UTF-8.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_CONTROL = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_NONCHARACTERS}]")


# What systemd sets for a service itself (systemd.exec(5), "Environment Variables Set or Propagated by the Service Manager").
_SYSTEMD_VARIABLES = re.compile(
    r"LISTEN_(FDS|PID|PIDFDID|FDNAMES)|WATCHDOG_(PID|USEC)|NOTIFY_SOCKET|MAINPID|MAINPIDFDID|MANAGERPID|MANAGERPIDFDID|"
    r"INVOCATION_ID|JOURNAL_STREAM|LOG_NAMESPACE|CREDENTIALS_DIRECTORY|ENCRYPTED_CREDENTIALS_DIRECTORY|"
    r"MEMORY_PRESSURE_(WATCH|WRITE)|SERVICE_RESULT|EXIT_(CODE|STATUS)|MONITOR_[A-Z_]+|SYSTEMD_EXEC_PID|TRIGGER_[A-Z_]+|"
    r"FDSTORE|PIDFILE|REMOTE_(ADDR|PORT)"
)
# What decides which code a program runs (ld.so(8), python(1), bash(1)).
_LOADER_VARIABLES = re.compile(
    r"PATH|HOME|LD_[A-Z0-9_]*|GLIBC_TUNABLES|GCONV_PATH|PYTHON[A-Z0-9_]*|BASH_ENV|ENV|IFS|SHELLOPTS"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_?[0-9]+)?$")
# Prefixes that services give their keys, so that leaked ones are found: Hugging Face, OpenAI and its like, GitHub, GitLab,
# Slack, AWS; and JSON Web Tokens.
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AKIA|eyJ[A-Za-z0-9_-]{1,500}\.eyJ)[A-Za-z0-9_.-]{12,}"
)
_SECRET_ARGUMENT = re.compile(r"""((?:key|token|secret|passw(?:or)?d)["']?(?:\s+|=)["']?)[^\s"']+""", re.IGNORECASE)


def is_systemds_variable(name: str) -> bool:
    """Whether systemd sets this variable for a service itself."""
    return _SYSTEMD_VARIABLES.fullmatch(name) is not None


def is_loaders_variable(name: str) -> bool:
    """Whether this variable decides which code a program runs."""
    return _LOADER_VARIABLES.fullmatch(name) is not None


def has_control(text: str) -> bool:
    """Whether it has a character that no setting may have: controls, line separators, noncharacters."""
    return _CONTROL.search(text) is not None


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable seems to be a secret, by its name or by its value."""
    return bool(value) and bool(_SECRET_NAME.search(name.upper()) or _SECRET_VALUE.search(value))


def redacted(text: str) -> str:
    """Text without what looks like a secret: for logs that outlive it, and for messages."""
    return _SECRET_VALUE.sub(r"\1…", _SECRET_ARGUMENT.sub(r"\1…", text))


@dataclass(frozen=True)
class Kind:
    """One kind of value. `signature` is its D-Bus type, `hint` what may be typed."""

    signature: str
    hint: str
    parse: Callable[[object], Value]
    text: Callable[[Value], str]


def size_text(value: int) -> str:
    """Bytes as systemd writes them: the largest suffix that keeps the number whole (32G, 1536M, 1000)."""
    if value == INFINITY:
        return "infinity"
    for suffix in ("T", "G", "M", "K"):
        unit = _SUFFIXES[suffix]
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)


def _parse_size(raw: object) -> Value:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw == INFINITY:  # as it is sent over D-Bus
            return INFINITY
        value = raw
    elif isinstance(raw, str) and raw.strip().lower() in ("infinity", "max", "unlimited"):
        return INFINITY
    elif isinstance(raw, str) and (match := _SIZE.fullmatch(raw.strip())):
        value = int(Decimal(match[1]) * _SUFFIXES[match[2].upper()])
    else:
        raise ValueError("use bytes with a suffix, such as 512M, 32G or 1.5T, or infinity")
    if not MIB <= value < 2**63:
        raise ValueError("must be between 1M and 8388607T, or infinity; a number without a suffix is bytes")
    return value


def _decimal(raw: object) -> Decimal | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        value = Decimal(str(raw).strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def number(low: float, high: float, unit: str = "") -> Kind:
    """A decimal number between `low` and `high`, both included."""

    def parse(raw: object) -> Value:
        value = _decimal(raw)
        # As floats: the decimal 0.01 is a little below what the bound 0.01 is as one.
        if value is None or not low <= float(value) <= high:
            raise ValueError(f"use a number from {low:g} to {high:g}{unit and ' ' + unit}")
        return float(value)

    return Kind("d", f"{low:g}-{high:g}", parse, lambda v: repr(v).removesuffix(".0"))


def integer(low: int, high: int, unit: str = "") -> Kind:
    """A whole number between `low` and `high`, both included."""

    def parse(raw: object) -> Value:
        value = _decimal(raw)
        if value is None or value != value.to_integral_value() or not low <= value <= high:
            raise ValueError(f"use a whole number from {low} to {high}{unit and ' ' + unit}")
        return int(value)

    return Kind("t", f"{low}-{high}", parse, str)


def choice(*allowed: str) -> Kind:
    """One word of a list; "yes" and "no" also take every spelling that systemd takes."""

    def parse(raw: object) -> Value:
        word = {True: "yes", False: "no"}[raw] if isinstance(raw, bool) else str(raw).strip().lower()
        if word not in allowed:
            synonym = "yes" if word in _TRUE else "no" if word in _FALSE else ""
            # systemd's ProtectHome= and ProtectSystem= say "true" and "yes" for the same thing.
            word = next((w for w in ("true", "yes") if synonym == "yes" and w in allowed), word)
            word = next((w for w in ("false", "no") if synonym == "no" and w in allowed), word)
        if word not in allowed:
            raise ValueError(f"use one of: {', '.join(allowed)}")
        return word

    return Kind("s", "|".join(allowed), parse, str)


def _parse_boolean(raw: object) -> Value:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("use yes or no")


def _plain(raw: object, most: int = 4096) -> str:
    if not isinstance(raw, str):
        raise ValueError("use text")
    if match := _CONTROL.search(raw):
        raise ValueError(f"must not contain the control character {match[0]!r}")
    if len(raw) > most:
        raise ValueError(f"is longer than {most} characters")
    return raw


def _parse_arguments(raw: object) -> Value:
    text = _plain(raw)
    try:
        shlex.split(text)
    except ValueError as e:
        raise ValueError(f"cannot be split into words ({e}); balance the quotes") from None
    return text


_GPU = re.compile(r"[0-9]{1,3}|GPU-[0-9a-fA-F-]{4,40}|MIG-[0-9A-Za-z/-]{4,80}")


def _parse_gpus(raw: object) -> Value:
    items = list(raw) if isinstance(raw, list | tuple) else str(raw).split(",")
    if items in (["none"], []):
        return ()
    gpus = tuple(str(item).strip() for item in items)
    for gpu in gpus:
        if not _GPU.fullmatch(gpu):
            raise ValueError("use GPU numbers or UUIDs separated by commas, such as 0,1, or none")
    if len(set(gpus)) != len(gpus):
        raise ValueError("names a GPU twice")
    return gpus


def _parse_paths(raw: object) -> Value:
    try:
        items = [_plain(i) for i in raw] if isinstance(raw, list | tuple) else shlex.split(_plain(raw))
    except ValueError as e:
        raise ValueError(f"use absolute paths separated by blanks ({e})") from None
    for item in items:
        if not item.startswith("/"):
            raise ValueError(f"{item!r} is no absolute path")
        if ".." in item.split("/"):
            raise ValueError(f"{item!r} has a '..', which a unit cannot name; write it without")
    return tuple(items)


def _parse_environment(raw: object) -> Value:
    try:
        items = [_plain(i) for i in raw] if isinstance(raw, list | tuple) else shlex.split(_plain(raw, 65536))
    except ValueError as e:
        raise ValueError(f"use KEY=VALUE, separated by blanks ({e})") from None
    names = []
    for item in items:
        name, sign, _ = item.partition("=")
        if not sign and _VARIABLE.fullmatch(name) and name.isupper():  # any other may be a part of a value
            raise ValueError(
                f"{name[:40]} has no value; use {name[:40]}=VALUE, with quotes around a value that has blanks"
            )
        if not sign:
            raise ValueError("use KEY=VALUE, separated by blanks; quote a value that has some")
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is no name of a variable; use letters, digits and _")
        if is_systemds_variable(name):
            raise ValueError(f"{name} is systemd's own; leave it out")
        if name in names:
            raise ValueError(f"names the variable {name[:40]} twice; leave one of the two out")
        names.append(name)
    if sum(map(len, items)) > 65536 // 2:
        raise ValueError("is longer than 32768 characters")
    return tuple(items)


def _words(value: Value) -> str:
    return shlex.join(value) if isinstance(value, tuple) else str(value)


def _commas(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) and value else "none"


TEXT = Kind("s", "text", _plain, str)
ARGUMENTS = Kind("s", "arguments, quoted as in a shell", _parse_arguments, str)
BOOLEAN = Kind("b", "yes|no", _parse_boolean, lambda v: "yes" if v else "no")
SIZE = Kind("t", "bytes, such as 32G, or infinity", _parse_size, lambda v: size_text(int(str(v))))
GPUS = Kind("as", "0,1|none", _parse_gpus, _commas)
PATHS = Kind("as", "absolute paths", _parse_paths, _words)
ENVIRONMENT = Kind("as", "KEY=VALUE, quoted as in a shell", _parse_environment, _words)
PORT = integer(1, 65535)
SECONDS = number(0.1, 86400 * 7, "seconds")
WEIGHT = integer(1, 10000)
COUNT = integer(1, 1_000_000)
CORES = number(0.01, 10000, "cores")
