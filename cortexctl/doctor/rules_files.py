"""What is said of files: modes, owners, leftovers, room, units and the journal. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cortexctl.doctor.evidence import Files, Unseen, Verified
from cortexctl.doctor.line import Cure, Fix, Line, error, from_sentence, note, ok, warning
from cortexctl.human import size
from cortexd.diagnosis.machine import Folder
from cortexd.names import model_name

LITTLE_ROOM = 1 << 30
"""Bytes, for what backends download; our own files need far less."""
_OUR_ROOM = 64 << 20
_MOST = 5


def obstacles(files: Files) -> Iterator[Line]:
    """What holds systemd up, or will."""
    if found := files.obstacles:
        what = "is no unit file" if len(found) == 1 else "are no unit files"
        these = "it" if len(found) == 1 else "them"
        yield error(
            "obstacle",
            f"{_some(found)} {what}: reading {these}, your systemd manager hangs",
            "move it away; if the manager hangs already, --fix also has it go on",
            Fix(Cure.ASIDE, f"Put {_some(found)} aside, and have systemd go on?", tuple(map(str, found))),
        )


def modes(files: Files, user: str) -> Iterator[Line]:
    """Who may read what is the user's alone."""
    if files.odd:
        text = f"{_some(files.odd)}: where cortexd keeps a file or a folder of its own lies something else"
        yield error("files", text, "see what it is, and move it away")
    if files.link_to_theirs:
        text = f"{files.link_to_theirs}: is a link to a folder of another user's"
        yield error("files", text, f"rm {shlex.quote(str(files.link_to_theirs))}")
    if files.not_ours:
        paths = shlex.join(map(str, files.not_ours[:_MOST]))
        yield error("files", f"{_some(files.not_ours)}: belongs to another user", f"sudo chown -h {user}: {paths}")
    if files.open:
        what = "1 file or folder" if len(files.open) == 1 else f"{len(files.open)} files and folders"
        yield warning(
            "files",
            f"{_some(files.open)}: others than you have rights to it",
            f"chmod go= {shlex.join(map(str, files.open[:_MOST]))}{' ...' if files.open[_MOST:] else ''}",
            Fix(Cure.CLOSE, f"Take the rights of others to {what} away?", tuple(map(str, files.open))),
        )
    if not (files.odd or files.link_to_theirs or files.not_ours or files.open):
        yield ok("files", "nobody else may read your models' files" if files.present else "there is no ~/.cortex yet")


def leftovers(files: Files) -> Iterator[Line]:
    """What nobody needs, or may."""
    if files.set_aside:
        text = f"{_some(files.set_aside)}: a damaged database that cortexd kept"
        yield note("leftover", text, "delete it with its -wal and -shm when all your models are registered again")


def room(rooms: Sequence[Folder]) -> Iterator[Line]:
    """Space on disks: in our folder, which comes first, and in caches."""
    faults: list[Line] = []
    for number, folder in enumerate(rooms):
        ours = number == 0
        if folder.obstacle is not None:
            make = error if ours else warning
            text = f"{folder.path} cannot be written: {folder.obstacle} is in the way"
            faults.append(make("room", text, f"see 'ls -ld {folder.obstacle}' and 'findmnt -T {folder.obstacle}'"))
        elif folder.free is not None and folder.free < (_OUR_ROOM if ours else LITTLE_ROOM):
            text = f"only {size(folder.free)} are free in {folder.path}"
            what = "cortexd writes its database there" if ours else "it is where models are downloaded to"
            faults.append(warning("room", text, f"make room: {what}"))
    yield from faults
    known = [folder for folder in rooms[1:] if folder.free is not None]
    if known and not faults:
        least = min(known, key=lambda folder: folder.free or 0)
        yield ok("room", f"{size(least.free or 0)} are free where models are downloaded to")


def units(verified: Verified | Unseen) -> Iterator[Line]:
    """What systemd thinks of our units."""
    if isinstance(verified, Unseen):
        yield note("units", f"the units were not verified: {verified.reason}")
        return
    for complaint in verified.complaints[:_MOST]:
        yield warning("units", complaint, _unit_remedy(complaint, verified.foreign))
    if verified.complaints[_MOST:]:
        more = len(verified.complaints) - _MOST
        yield warning("units", f"systemd complains of units {more} times more", "see 'systemd-analyze --user verify'")
    if verified.units and not verified.complaints:
        files = "the unit file" if verified.units == 1 else f"{verified.units} unit files"
        yield ok("units", f"systemd has nothing to say against {files}")


def _unit_remedy(complaint: str, foreign: Collection[str]) -> str:
    unit = next((unit for unit in sorted(foreign) if unit in complaint), "")
    if unit:
        repair = f"'cortexctl repair {model_name(unit)}' puts its file aside and writes the unit"
        return f"{repair}; where no model has that name, move the file away"
    return "'cortexctl cat NAME' shows a unit; what you added lies in its drop-ins"


def journal(problem: str | Unseen | None) -> Iterator[Line]:
    """Whether `logs` shows anything."""
    if problem is None:
        yield ok("journal", "you may read your services' journal")
    elif isinstance(problem, Unseen):
        yield note("journal", f"whether you may read the journal is not known: {problem.reason}")
    else:
        line = from_sentence("journal", problem)
        yield warning("journal", f"logs are not shown: {line.text}", line.remedy)


def _some(paths: Sequence[Path]) -> str:
    shown = ", ".join(map(str, paths[:_MOST]))
    return shown if len(paths) <= _MOST else f"{shown} and {len(paths) - _MOST} more"
