"""The whole examination: every look within its bound, then the rules in the order in which they are shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from cortexctl.doctor import look_files, look_machine, look_session, rules_files, rules_machine, rules_session
from cortexctl.doctor.bounded import all_at_once
from cortexctl.doctor.evidence import Evidence, Kernel, Model, Program, Session, Unseen
from cortexctl.doctor.line import Line, warning
from cortexctl.journal import unreadable

T = TypeVar("T")

_FIRST, _SECOND = 5.5, 3.0
"""Seconds for all the looks together (a bus has five to let us in), and for the versions of the programs that they found."""


def collect() -> Evidence:
    """Look at everything; at most some eight seconds, on a machine where nothing answers."""
    user, where = look_session.user_name(), look_files.places(os.environ)
    path = os.environ.get("PATH") or os.defpath
    seen = all_at_once(
        {
            "session": lambda: look_session.session(path),
            "lingers": lambda: look_session.lingers(user),
            "kernel": look_machine.kernel,
            "gpus": lambda: look_machine.gpus(user),
            "files": lambda: look_files.files(where),
            "rooms": lambda: look_files.rooms(where),
            "verified": lambda: look_files.verified(where),
            "journal": unreadable,
            "built_in": lambda: look_machine.built_in(path),
        },
        _FIRST,
    )
    return Evidence(user=user, programs=_programs(seen["session"], seen.pop("built_in")), places=where, **seen)


def _programs(session: Session | Unseen, built_in: object) -> tuple[Program, ...] | Unseen:
    daemon = None if isinstance(session, Unseen) else session.daemon
    listed = (daemon and daemon.backends) or built_in
    if not isinstance(listed, tuple):
        return Unseen("PATH could not be searched in time")
    versions = all_at_once({row.name: partial(look_machine.program, row) for row in listed}, _SECOND)
    late = {row.name: Program(name=row.name, executable=row.executable, problem=row.problem) for row in listed}
    return tuple(late[name] if isinstance(found, Unseen) else found for name, found in versions.items())


def judge(seen: Evidence, uid: int) -> dict[str, list[Line]]:
    """The lines, by group."""
    session, kernel, files = seen.session, seen.kernel, seen.files
    models = None if isinstance(session, Unseen) or session.daemon is None else session.daemon.models
    return {
        "Session": [
            *_of("", "", files, rules_files.obstacles),
            *_of("bus", "your message bus", session, rules_session.bus),
            *_of("", "", session, lambda s: rules_session.manager(s, seen.user, uid)),
            *rules_session.linger(seen.lingers, seen.user),
            *_of("", "", session, rules_session.delegation),
            *rules_files.journal(seen.journal),
        ],
        "cortexd": [
            *_of("", "", session, rules_session.daemon),
            *_of("", "", kernel, partial(_ports, models)),
            *rules_files.units(seen.verified),
        ],
        "Machine": [
            *_of("cgroup", "the kernel", kernel, rules_machine.control_groups),
            *_of("", "", kernel, rules_machine.namespaces),
            *_of("", "", kernel, rules_machine.killers),
            *_of("gpu", "GPUs", seen.gpus, lambda g: rules_machine.gpus(g, seen.user)),
        ],
        "Backends": [*_of("backend", "the backends", seen.programs, lambda p: rules_machine.programs(p, models))],
        "Files": [
            *_of("files", "your files", files, lambda f: rules_files.modes(f, seen.user)),
            *_of("", "", files, rules_files.leftovers),
            *_of("room", "the room on your disks", seen.rooms, rules_files.room),
        ],
    }


def _ports(models: Iterable[Model] | None, kernel: Kernel) -> Iterator[Line]:
    return rules_machine.ports(models, kernel)


def _of(check: str, what: str, seen: T | Unseen, rule: Callable[[T], Iterable[Line]]) -> Iterable[Line]:
    """What a rule says; where its evidence is missing, one warning by the rule that names `what`, and no more."""
    if not isinstance(seen, Unseen):
        return rule(seen)
    if not what:
        return ()
    return [warning(check, f"{what} could not be looked at: {seen.reason}", "repair that, and ask again")]
