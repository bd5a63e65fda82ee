"""Values as a person reads them: sizes, times, and text from outside that cannot harm a terminal."""

from __future__ import annotations

import re
import time

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NOT_AVAILABLE = 2**64 - 1
"""What the API says for a figure that this machine does not have."""

_SECOND = 1_000_000
_STEPS = (("y", 31_557_600), ("month", 2_629_800), ("w", 604_800), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_SEQUENCE = r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])"


def clean(text: str, keep: str = "") -> str:
    """`text` without what could steer the terminal: control, formatting and undecodable characters are spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _spelled(c) for c in text)


def _spelled(c: str) -> str:
    return c.encode("unicode_escape", "backslashreplace").decode("ascii")


def strip_sequences(text: str) -> str:
    """`text` without terminal sequences (colours, titles), for lines that a program wrote for a terminal."""
    return clean(re.sub(_SEQUENCE, "", text), keep="\t")


def about(name: str, text: str) -> str:
    """`text`, made to say which model it is about, where it does not yet."""
    named = re.search(rf"(?<![\w.:-]){re.escape(name)}(?![\w.:-])", text)
    return text if named else f"{name}: {text}"


def size(value: int) -> str:
    """Bytes, rounded as systemctl does: 118.2G."""
    if value == NOT_AVAILABLE:
        return "infinity"
    for suffix, unit in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value >= unit:
            return f"{value / unit:.1f}{suffix}"
    return f"{value}B"


def exact_size(value: int) -> str:
    """Bytes without rounding, as `set` takes them: 32G, 1536M, 1000."""
    if value == NOT_AVAILABLE:
        return "infinity"
    for suffix, unit in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)


def failed_runs(failed: int, most: int) -> str:
    """How much of a restart budget is spent."""
    return f"{failed} of {most} failed runs in a row"


def duration(seconds: float) -> str:
    """The two largest steps: 2h 3min, 12.3s, 250ms."""
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    parts: list[str] = []
    rest = int(seconds)
    for name, length in _STEPS:
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{name}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part)


def loading(info: Mapping[str, Any], now: float) -> str:
    """For how long a model has been starting, and how long that usually takes: " (3.5s of usually 9.2s)"; empty where it does
    not start, or that cannot be told. `now`: seconds since the epoch."""
    since = now - info["StateChangeTimestamp"] / 1e6
    if info["State"] != "starting" or not 0 <= since < now:
        return ""
    usual = info["UsualLoadUSec"] / 1e6
    return f" ({duration(since)}{f' of usually {duration(usual)}' if usual >= 1 else ''})"


def alarming(warning: str) -> bool:
    """Whether a warning of the daemon's is one that nobody should miss: a server that is open to everybody, or without a
    sandbox."""
    return ", and it asks for no key" in warning or "its server has no sandbox" in warning


def moment(microseconds: int) -> str:
    """A point in time, in the local zone."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(microseconds / _SECOND))


def ago(microseconds: int, now: float) -> str:
    """How long ago; `now` is seconds since the epoch."""
    return f"{duration(max(now - microseconds / _SECOND, 0))} ago"


def since_epoch(text: str, now: float) -> int:
    """Microseconds since the epoch of what a person types: -90min, 2h ago, today, 2026-11-23, 2026-11-23 14:05:30.

    Raises ValueError.
    """
    word = text.strip().lower()
    if match := re.fullmatch(r"-?(\d+)\s*([a-z]+)(?:\s+ago)?", word):
        for name, length in _STEPS:
            if match[2] in (name, name + "s", {"min": "m", "s": "sec"}.get(name), {"d": "day", "h": "hour"}.get(name)):
                return int((now - int(match[1]) * length) * _SECOND)
    today = time.strftime("%Y-%m-%d", time.localtime(now))
    word = {"today": today, "yesterday": time.strftime("%Y-%m-%d", time.localtime(now - 86_400))}.get(word, word)
    for layout in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dt%H:%M:%S"):
        try:
            return int(time.mktime(time.strptime(word, layout)) * _SECOND)
        except ValueError:
            continue
    raise ValueError("use a time such as '2026-11-23 14:05', 'today' or '-90min'")
