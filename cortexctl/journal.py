"""The journal of a model's unit: what to match, whether this user may read it, and a run's last lines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cortexctl.human import strip_sequences

_STARTING = "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5"
"""systemd's message when it begins to start a unit (sd-messages(3)): one a run, found by its index."""
_SECONDS = 3.0
_LONGEST_LINE = 2000
FOLDERS = (Path("/var/log/journal"), Path("/run/log/journal"))


def unit_match(unit: str) -> list[str]:
    """Every line of a unit: its processes' and the manager's about it, and those that the journal cannot give to a unit,
    since their process was gone by then; they still carry its identifier."""
    user = f"_UID={os.getuid()}"
    identifier = f"SYSLOG_IDENTIFIER={unit.removesuffix('.service')}"
    return [f"_SYSTEMD_USER_UNIT={unit}", user, "+", f"USER_UNIT={unit}", user, "+", identifier, user]


def run_match(invocation: str) -> list[str]:
    """The lines of one run, the manager's own about it included."""
    return [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"USER_INVOCATION_ID={invocation}"]


def reading(folders: tuple[Path, ...] = FOLDERS) -> str:
    """How journalctl is to read: a user's own journal, or all there is, without a hint about what is not there."""
    own = f"user-{os.getuid()}.journal"
    mine = (file for folder in folders for file in _journals(folder) if file.name == own)
    return "--user" if any(os.access(file, os.R_OK) for file in mine) else "--quiet"


def unreadable(folders: tuple[Path, ...] = FOLDERS) -> str | None:
    """Why this user sees no lines of their services, with the remedy; None where they do."""
    files = [file for folder in folders for file in _journals(folder)]
    if any(os.access(file, os.R_OK) for file in files):
        return None
    group = "join the group systemd-journal (sudo usermod -aG systemd-journal $USER, then log in again)"
    if _journals(folders[0]):
        return f"your user has no journal of its own yet, and those of others need a permission; {group}"
    if files:
        return (
            f"the journal is volatile and only readable by the system; {group}, or make it persistent "
            "(sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald)"
        )
    return "there is no journal on this machine; is systemd-journald running?"


def _journals(folder: Path) -> list[Path]:
    """The journal files below a folder; one that may not be listed counts as one that may not be read."""
    try:
        machines = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError:
        return [folder / "unlisted"]
    found = []
    for machine in machines:
        try:
            found += [file for file in machine.iterdir() if file.suffix == ".journal"]
        except NotADirectoryError:
            continue
        except PermissionError:
            found.append(machine / "unlisted")
    return found


def tail(unit: str, invocation: str, lines: int) -> list[str]:
    """The last lines of a run (without one: of the unit), harmless to a terminal; none when the journal is slow."""
    match = run_match(invocation) if invocation else unit_match(unit)
    text = _journalctl("-a", "-o", "short", "-n", str(lines), *match)
    return [strip_sequences(line[:_LONGEST_LINE]) for line in text.splitlines()[-lines * 4 :]]


def runs(unit: str, count: int) -> list[str]:
    """The invocation IDs of a unit's last runs, newest first, as the journal knows them."""
    import json

    text = _journalctl(
        "-r", "-n", str(count), "-o", "json", "--output-fields=USER_INVOCATION_ID", _STARTING, f"USER_UNIT={unit}"
    )
    records = [json.loads(line) for line in text.splitlines()]
    return [str(record["USER_INVOCATION_ID"]) for record in records if "USER_INVOCATION_ID" in record]


def _journalctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["journalctl", "-q", "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
