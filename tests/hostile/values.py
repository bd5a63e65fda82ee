"""Values that somebody chose to do harm, and a strict reader of what became of them."""

from __future__ import annotations

import re

from hypothesis import strategies as st

NASTY = [
    '"', "'", "\\", "%", "$", "${HOME}", ";", " ; ", "\n", "\r", "\r\n", "\t", "\x00", "\x01", "\x1b[31m", "\x7f", "\x85", "\x9b2J",
    " ", "#", "=", ":", "@", "-", "+", "!", "|", "%n", "%%", "$$", "\\n", "\\x0a", "\\\n", "\u200b", "\u2028", "\u202e", "\u200f",
    "\ud800", "\udfff", "\ufffe", "🦙", "é", "世", "\u0301", "/", "..", "~", "*", "`id`", "$(id)",
    "\n[Service]\nExecStart=/bin/false\n", "\nExecStartPre=/bin/false", '" ; /bin/false "', "\n[Unit]\nOnFailure=x.service",
    "ExecStart=/bin/false", "[Install]", "# Settings: {}", "x" * 300,
]  # fmt: skip
"""Pieces of text, each with a meaning of its own to somebody on the way."""

HUGE = ["x" * 100_000, "\\" * 30_000, "🦙" * 25_000, '"' * 60_000, "a b " * 25_000, "\n" * 100_000]

TEXTS = st.one_of(
    st.lists(st.sampled_from(NASTY), max_size=6).map("".join),
    st.text(max_size=12),
    st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=3)), max_size=5).map("".join),
)
"""Whatever text there is, surrogates and NUL included."""

_ASSIGNMENT = re.compile(r"([A-Za-z]+)=(.*)")


def shape(text: str) -> dict[str, list[str]]:
    """The directives of a unit, by section and in order, as systemd's own reader takes lines (a carriage return and a NUL
    end one, too; a backslash before the end goes on). AssertionError where a line is none of ours."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), "a control character in a unit"
    text.encode()  # a lone surrogate would be in no file
    sections: dict[str, list[str]] = {}
    section: list[str] | None = None
    for line in text.split("\n"):
        assert not line.endswith("\\") or line.startswith("#"), f"a line that goes on: {line[-60:]!r}"
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            assert line in ("[Unit]", "[Service]", "[Install]") and line not in sections, line
            section = sections.setdefault(line, [])
            continue
        match = _ASSIGNMENT.fullmatch(line)
        assert match is not None and section is not None, line[:80]
        section.append(match[1])
    return sections
