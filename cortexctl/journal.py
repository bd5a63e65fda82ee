"""The journal of a model's unit: what to match, whether this user may read it, and a run's last lines."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cortexctl.human import strip_sequences
from cortexd.names import model_name

_STARTING = "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5"
"""systemd's message when it begins to start a unit (sd-messages(3)): one a run, found by its index."""
_SYSTEMS = "system.journal"
_SECONDS = 3.0
_LONGEST_LINE = 2000
FOLDERS = (Path("/var/log/journal"), Path("/run/log/journal"))

_BY_MANAGER = "_SYSTEMD_USER_UNIT=init.scope"
"""What the user's manager says: a server can send every field that systemd's lines have but those that begin with "_",
which are journald's own."""
_BY_CORTEXD = "_SYSTEMD_USER_UNIT=cortexd.service"
_DROPPED = "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e"
"""journald's word that it has dropped lines, in the system's journal."""


def unit_match(unit: str) -> list[str]:
    """Every line of a unit: its processes' and the manager's and cortexd's about it, and those that the journal cannot give
    to a unit, since their process was gone by then; they still carry its identifier."""
    user = f"_UID={os.getuid()}"
    identifier = f"SYSLOG_IDENTIFIER={unit.removesuffix('.service')}"
    return [
        f"_SYSTEMD_USER_UNIT={unit}", user,
        "+", f"USER_UNIT={unit}", user, _BY_MANAGER, _BY_CORTEXD,
        "+", identifier, user, "_TRANSPORT=stdout",
    ]  # fmt: skip


def run_match(invocation: str) -> list[str]:
    """The lines of one run, the manager's own about it included."""
    user = f"_UID={os.getuid()}"
    return [
        f"_SYSTEMD_INVOCATION_ID={invocation}", user,
        "+", f"USER_INVOCATION_ID={invocation}", user, _BY_MANAGER, _BY_CORTEXD,
    ]  # fmt: skip


def dropped_match() -> list[str]:
    """That journald dropped lines of the user's services, whose limit is one for them all; only who may read the system's
    journal finds it. It comes with the next line that journald takes."""
    return [_DROPPED, "_TRANSPORT=driver", f"OBJECT_SYSTEMD_UNIT=user@{os.getuid()}.service"]


def reading(folders: tuple[Path, ...] = FOLDERS) -> str:
    """How journalctl is to read: a user's own journal, or all that may be read, without a hint about what may not."""
    own = f"user-{os.getuid()}.journal"
    readable = {file.name for folder in folders for file in _journals(folder) if os.access(file, os.R_OK)}
    return "--user" if own in readable and _SYSTEMS not in readable else "--quiet"


def flood(units: Sequence[str], folders: tuple[Path, ...] = FOLDERS) -> str:
    """That journald may be dropping lines of these or other services of the user, and for whose sake; empty where it does not. For those
    who may not read where it says so itself: told by how many lines it took in its window of 30 s, 10,000 at least
    (journald.conf(5), RateLimitBurst=)."""
    if any(os.access(file, os.R_OK) for folder in folders for file in _journals(folder) if file.name == _SYSTEMS):
        return ""
    uid = os.getuid()
    for levels in (["PRIORITY=5", "PRIORITY=6"], ["PRIORITY=7"]):  # a limit for both, and one for debug alone
        match = [f"_SYSTEMD_UNIT=user@{uid}.service", f"_UID={uid}", *levels]
        text = _journalctl("--since=-30s", "-o", "cat", "--output-fields=_SYSTEMD_USER_UNIT", *match)
        wrote = Counter(text.splitlines())
        if wrote.total() < 10_000 or (len(levels) == 1 and not wrote.keys() & set(units)):
            continue
        ((unit, most),) = wrote.most_common(1)
        model = "" if len(levels) == 1 else model_name(unit)
        remedy = f"'cortexctl set {model} log_level=debug' leaves the others room; " if model else ""
        return (
            f"the journal may be dropping lines: it takes only so many in 30 s from all of your services together, and "
            f"{unit.removesuffix('.service')} wrote {most} of the last {wrote.total()}; {remedy}"
            "'man journald.conf' (RateLimitBurst=)"
        )
    return ""


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
        "-r",
        "-n",
        str(count),
        "-o",
        "json",
        "--output-fields=USER_INVOCATION_ID",
        _STARTING,
        f"USER_UNIT={unit}",
        f"_UID={os.getuid()}",
        _BY_MANAGER,
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
