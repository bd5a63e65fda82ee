"""What speaks against a start: rules over what was seen of the model's files, its program and the machine. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cortexd.backends import Backend
from cortexd.backends.base import is_reference
from cortexd.diagnosis.executable import Version
from cortexd.diagnosis.finding import Finding, Level, error, warning
from cortexd.diagnosis.hub import Access, Hub
from cortexd.diagnosis.machine import Folder, Gpus
from cortexd.diagnosis.modelfiles import Survey, size_of
from cortexd.diagnosis.sandboxed import Denied
from cortexd.gpus import Holder
from cortexd.kinds import GIB, INFINITY, size_text
from cortexd.model import ModelSpec

_LITTLE_ROOM = GIB
_MAX_SAME = 5  # findings of one kind; a folder may have thousands of files
_USAGE = 2  # the exit status of a program that does not know an option


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What was seen. None: it was not looked at, or could not be."""

    survey: Survey | None = None
    unseen: tuple[tuple[Path, Path], ...] = ()
    """Files that the sandbox hides: as the server calls them, and where they are."""
    denied: tuple[Denied, ...] | None = None
    """What the sandbox did not let through when it was tried."""
    untried: str = ""
    """Why the sandbox was not tried; empty where it was, or where that was not asked for."""
    command: tuple[str, ...] = ()
    """What the program was asked with."""
    version: Version | None = None
    asked_seconds: float = 0
    """How long the program had."""
    impatient: bool = False
    """A program that took longer is no finding."""
    drop_ins: bool = False
    """The user's drop-ins may give the unit what the program lacked when it was asked."""
    gpus: Gpus = field(default_factory=lambda: Gpus(None))
    explicit_gpus: bool = False
    holders: Sequence[Holder] = ()
    """Processes of the user's that hold GPU memory beside the models."""
    folders: Sequence[Folder] = ()
    hub: Hub | None = None


def findings(spec: ModelSpec, backend: Backend, seen: Evidence) -> list[Finding]:
    """Everything, errors first."""
    found = (
        *_program(spec, seen),
        *_files(spec, backend, seen),
        *_folders(seen),
        *_sandbox(spec, seen),
        *_gpus(spec, seen),
        *_holders(spec, seen),
        *_memory(spec, seen),
        *_hub(spec, seen),
    )
    return merged(found)


def merged(found: Iterable[Finding]) -> list[Finding]:
    """Errors first, and of those about the same thing the first one: the others follow from it."""
    about: dict[tuple[str, str], Finding] = {}
    for finding in sorted(found, key=lambda finding: finding.level is Level.WARNING):
        about.setdefault((finding.what, finding.value), finding)
    return list(about.values())


def _program(spec: ModelSpec, seen: Evidence) -> Iterator[Finding]:
    version = seen.version
    if version is None or version.status == 0:
        return
    asked = f"'{' '.join(seen.command[1:2])}'"
    if version.status is None:
        if not seen.impatient:
            problem = f"did not answer {asked} within {seen.asked_seconds:g} s"
            yield warning("exec", spec.exec, problem, "see what it does by hand")
        return
    ended = f"status {version.status}" if version.status > 0 else f"signal {-version.status}"
    problem = f"ended with {ended} when asked for {asked}" + (f": {version.said}" if version.said else "")
    # A program that does not know the option runs, at least; a drop-in may say where its libraries are.
    make = warning if version.status == _USAGE or seen.drop_ins else error
    yield make("exec", spec.exec, problem, "repair its installation, or give another one with exec=")


def _files(spec: ModelSpec, backend: Backend, seen: Evidence) -> Iterator[Finding]:
    survey = seen.survey
    if survey is None:
        if not is_reference(spec.path) and not seen.denied:
            yield warning("path", spec.path, "its file system does not answer in time", "check the mount")
        return
    for fault in survey.faults[:_MAX_SAME]:
        yield error("path", fault.path, fault.problem, fault.remedy)
    if len(survey.faults) > _MAX_SAME:
        yield error("path", spec.path, f"{len(survey.faults) - _MAX_SAME} more of its files are no better", "see those")
    if survey.is_folder and backend.folder_has and not survey.names & set(backend.folder_has):
        wanted = " or ".join(backend.folder_has)
        yield error("path", spec.path, f"has no {wanted}", "give a folder in the form that the hub has models in")


def _sandbox(spec: ModelSpec, seen: Evidence) -> Iterator[Finding]:
    closed = {denied.path for denied in seen.denied or ()}
    for path, real in seen.unseen[:_MAX_SAME]:
        if seen.denied is None or path in closed:  # else it was tried, and is there
            where = "" if real == path else f"links to {real}, which "
            make = warning if seen.drop_ins else error  # they may bring it back
            yield make("path", path, f"{where}the sandbox hides", _remedy(spec, real))
    for denied in (seen.denied or ())[:_MAX_SAME]:
        what = "written" if denied.write else "read"
        if denied.errno == errno.ENOENT and not denied.write:
            problem = "is not there inside the sandbox"
        else:
            problem = f"cannot be {what} inside the sandbox: {os.strerror(denied.errno)}"
        yield error("folder" if denied.write else "path", denied.path, problem, _remedy(spec, denied.path))
    if seen.untried:
        yield warning("sandbox", "", f"was not tried: {seen.untried}", "'cortexctl logs' shows what a start says")


def _remedy(spec: ModelSpec, path: Path) -> str:
    hardening = spec.hardening
    if hardening.private_tmp and (path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp")):
        return "move it elsewhere, or set PrivateTmp=false"
    if hardening.protect_home in ("tmpfs", "true"):
        return f"move it elsewhere, or set ProtectHome=read-only (it is {hardening.protect_home})"
    return "check its mode and the unit's drop-ins, or move it elsewhere"


def _gpus(spec: ModelSpec, seen: Evidence) -> Iterator[Finding]:
    there = seen.gpus
    if there.count is None or not spec.gpus:
        return
    named = ",".join(spec.gpus)
    if not there.count:
        if seen.explicit_gpus:
            yield warning("gpus", named, "this machine shows no GPU", "use gpus=none, or check the driver")
        return
    last = there.count - 1
    have = "one GPU, 0" if there.count == 1 else f"GPUs 0 to {last}"
    for gpu in spec.gpus:
        if gpu.isdigit() and int(gpu) > last:
            yield error("gpus", named, f"this machine has {have}", "name those that it has, or none")
            return
        if gpu.startswith("GPU-") and there.identifiers and not any(i.startswith(gpu) for i in there.identifiers):
            yield error("gpus", named, f"this machine has no {gpu}", "'nvidia-smi -L' shows those that it has")
            return


def _holders(spec: ModelSpec, seen: Evidence) -> Iterator[Finding]:
    if not spec.gpus:
        return
    for holder in seen.holders[:_MAX_SAME]:
        who = f"process {holder.pid} ({holder.program}) of yours holds {size_of(holder.memory)} of GPU memory"
        yield warning("gpus", ",".join(spec.gpus), who, f"end it if it is a leftover: kill {holder.pid}")


def _memory(spec: ModelSpec, seen: Evidence) -> Iterator[Finding]:
    size = seen.survey.size if seen.survey else 0
    limit = spec.limits.memory
    if limit != INFINITY and size > limit:
        # The page cache of what it maps counts as its memory (systemd.resource-control(5), Linux' cgroup-v2.rst).
        problem = f"the model has {size_of(size)}, and will be read from disk again and again, or be killed"
        yield warning("memory", size_text(limit), problem, "raise memory=, or take a smaller or more quantized model")


def _folders(seen: Evidence) -> Iterator[Finding]:
    for folder in seen.folders:
        if folder.obstacle == folder.path:
            yield error("folder", folder.path, "cannot be written", "check what it is, its owner and its mode")
        elif folder.obstacle:
            problem = f"cannot be made in {folder.obstacle}"
            yield error("folder", folder.path, problem, "check what that is, its owner and its mode")
    little = [f for f in seen.folders if f.free is not None and f.free < _LITTLE_ROOM]
    if little:
        folder = min(little, key=lambda f: f.free or 0)
        yield warning("folder", folder.path, f"has {size_of(folder.free or 0)} free", "make room")


def _hub(spec: ModelSpec, seen: Evidence) -> Iterator[Finding]:
    hub = seen.hub
    if hub is None or hub.cached:
        return
    secret = f"'cortexctl secret set {spec.name} HF_TOKEN'"
    if hub.offline:
        yield error(
            "path", spec.path, "is not in the cache, and HF_HUB_OFFLINE forbids to download it", "unset it once"
        )
    elif hub.access is Access.UNKNOWN and hub.has_token:
        remedy = "check its spelling and the token's rights"
        yield error("path", spec.path, "the hub has no such repository for your token", remedy)
    elif hub.access is Access.UNKNOWN:
        remedy = f"check its spelling; a private one needs a token: {secret}"
        yield error("path", spec.path, "the hub has no such public repository", remedy)
    elif hub.access is Access.GATED:
        problem = "the hub gives it only to those who agreed to its terms, and there is no token"
        yield error("path", spec.path, problem, f"agree on its page, then {secret}")
    elif hub.access is Access.REFUSED:
        yield error("path", spec.path, "the hub does not let your token have it", "ask for access on its page")
