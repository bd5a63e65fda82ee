"""How values read, and that no text from outside steers a terminal."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexctl import human


@settings(deadline=None, database=None)
@given(st.text())
def test_clean_text_is_printable(text: str) -> None:
    assert human.clean(text).isprintable()
    assert human.strip_sequences(text).replace("\t", "").isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ünïcode", "plain – ünïcode"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("two\nlines", "two\\nlines"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_clean_spells_out(text: str, shown: str) -> None:
    assert human.clean(text) == shown


def test_sequences_of_a_log_line_go_without_a_trace() -> None:
    assert human.strip_sequences("\x1b[1;32mINFO\x1b[0m:\tup \x1b]0;evil\x07now\x08") == "INFO:\tup now\\x08"


@pytest.mark.parametrize(
    ("value", "rounded", "exact"),
    [
        (0, "0B", "0"),
        (1000, "1000B", "1000"),
        (1024, "1.0K", "1K"),
        (1792 * 1024**2, "1.8G", "1792M"),
        (32 * 1024**3, "32.0G", "32G"),
        (2**64 - 1, "infinity", "infinity"),
    ],
)
def test_sizes(value: int, rounded: str, exact: str) -> None:
    assert (human.size(value), human.exact_size(value)) == (rounded, exact)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0032, "3.2ms"), (12.34, "12.3s"), (60, "1min"), (7380, "2h 3min"), (90_000, "1d 1h"), (86_460, "1d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert human.duration(seconds) == text


NOW = 1_795_446_000.0


@pytest.mark.parametrize(
    ("text", "seconds_before"), [("-90min", 5400), ("2h ago", 7200), ("1 day ago", 86_400), ("-30s", 30), ("5m", 300)]
)
def test_relative_times(text: str, seconds_before: int) -> None:
    assert human.since_epoch(text, NOW) == int((NOW - seconds_before) * 1e6)


@pytest.mark.parametrize("text", ["2026-11-23 14:05:30", "2026-11-23 14:05", "2026-11-23"])
def test_absolute_times_are_local(text: str) -> None:
    local = time.localtime(human.since_epoch(text, NOW) / 1e6)
    assert time.strftime("%Y-%m-%d %H:%M:%S", local).startswith(text)


def test_today_is_midnight() -> None:
    local = time.localtime(human.since_epoch("today", NOW) / 1e6)
    assert (local.tm_hour, local.tm_min, local.tm_yday) == (0, 0, time.localtime(NOW).tm_yday)


@pytest.mark.parametrize("text", ["", "soon", "12", "2026-13-01"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="use a time"):
        human.since_epoch(text, NOW)
