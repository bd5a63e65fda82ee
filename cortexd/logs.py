"""The daemon's own log: plain lines on standard error with the priority that the journal understands (sd-daemon(3))."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from cortexd.api.interfaces import load
from cortexd.api.server import Exported
from cortexd.errors import InvalidConfig

LOG_CONTROL = "org.freedesktop.LogControl1"
LOG_CONTROL_PATH = "/org/freedesktop/LogControl1"

LOGGER = logging.getLogger("cortexd")
"""All of cortexd's own; its level is what is changed, since at "debug" the libraries tell every statement and socket."""

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_LEVELS = {
    "emerg": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "crit": logging.CRITICAL,
    "err": logging.ERROR,
    "warning": logging.WARNING,
    "notice": logging.INFO,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        # A record of several lines is several entries to the journal, each with its own priority.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(*, to_journal: bool) -> None:
    """Log to standard error: with priorities for the journal, else with times for a person."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JournalFormatter("%(message)s") if to_journal else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class LogControl(Exported):
    """org.freedesktop.LogControl1, for `systemctl --user service-log-level`."""

    interface = load(LOG_CONTROL)

    def properties(self) -> Mapping[str, Any]:
        """See the XML."""
        level = LOGGER.getEffectiveLevel()
        word = next((w for w in ("debug", "info", "warning", "err") if _LEVELS[w] >= level), "crit")
        return {"LogLevel": word, "LogTarget": "console", "SyslogIdentifier": "cortexd"}

    def set_LogLevel(self, word: object) -> None:
        """Change the level; InvalidConfig for a word that is none of syslog's."""
        if not isinstance(word, str) or word not in _LEVELS:
            raise InvalidConfig(f"LogLevel={word!r}: use one of {', '.join(_LEVELS)}")
        LOGGER.setLevel(_LEVELS[word])

    def set_LogTarget(self, word: object) -> None:
        """Only standard error, which systemd connects to the journal."""
        if word not in ("auto", "console", "journal"):
            raise InvalidConfig(f"LogTarget={word!r}: cortexd logs to standard error, which the journal gets")
