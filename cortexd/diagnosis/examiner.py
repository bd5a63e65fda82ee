"""Collects what preflight's rules need: shortly before a start, thoroughly when somebody asks."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cortexd import gpus
from cortexd.backends.base import is_reference
from cortexd.bounded import in_thread
from cortexd.diagnosis import hub, machine, modelfiles
from cortexd.diagnosis.executable import Version, Versions, surroundings
from cortexd.diagnosis.finding import Finding, Level, error
from cortexd.diagnosis.hub import Hub
from cortexd.diagnosis.machine import Folder, Gpus
from cortexd.diagnosis.modelfiles import Survey
from cortexd.diagnosis.preflight import Evidence, findings
from cortexd.diagnosis.sandboxed import Sandboxes, Trial
from cortexd.errors import CortexError, InvalidConfig
from cortexd.registered import Model
from cortexd.sandbox.proving import Prover
from cortexd.sandbox.trial import Trials
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd
from cortexd.units.render import Tools, unseen, written_folders

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that each look may take."""

    files: float
    version: float
    hub: float


BEFORE_START = Bounds(files=2, version=1, hub=2)
ON_REQUEST = Bounds(files=5, version=20, hub=8)
"""Within what a caller on the bus waits for a reply: 25 s in most libraries."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look at the disk brings."""

    survey: Survey | None
    unseen: tuple[tuple[Path, Path], ...]
    folders: tuple[Folder, ...]
    gpus: Gpus


class Examiner:
    """Looks at models before they are started. `secret`: a model's secret variable, or None; blocking."""

    def __init__(
        self,
        scope: Scope,
        tools: Tools,
        systemd: Systemd,
        secret: Callable[[str, str], str | None],
        root: Path = Path("/"),
    ) -> None:
        self._scope, self._tools, self._systemd, self._secret, self._root = scope, tools, systemd, secret, root
        self._versions = Versions()
        self._trials = Trials(scope, tools, systemd)
        self._sandboxes = Sandboxes(scope, tools, systemd, self._trials)
        self.prover = Prover(scope, tools, systemd, self._trials)

    async def start(self) -> None:
        """Remove what a daemon that was killed left, and take over what it found out."""
        await self._trials.clean_up()
        await self.prover.load()

    async def before_start(self, model: Model) -> list[str]:
        """What a start should be warned of. Raises InvalidConfig with what forbids it; takes some 2 s at most."""
        await self.prover.before_start(model)
        found = findings(model.spec, model.definition.backend, await self._collect(model, BEFORE_START))
        errors = [finding.sentence for finding in found if finding.level is Level.ERROR]
        if errors:
            raise InvalidConfig(". ".join(errors))
        return [finding.sentence for finding in found]

    async def examine(self, model: Model) -> list[Finding]:
        """Everything that speaks against a start, with a look from inside the sandbox."""
        seen, trial = await asyncio.gather(self._collect(model, ON_REQUEST), self._try_sandbox(model))
        evidence = replace(seen, denied=None if trial.failure else trial.denied, untried=trial.failure)
        return findings(model.spec, model.definition.backend, evidence)

    async def _try_sandbox(self, model: Model) -> Trial:
        path = model.spec.path
        survey = None if is_reference(path) else await _or_none(in_thread(ON_REQUEST.files, lambda: _survey(path)))
        reads = [] if is_reference(path) else [Path(path), *(survey.files if survey else ())]
        return await self._sandboxes.attempt(model, list(dict.fromkeys(reads)))

    async def _collect(self, model: Model, bounds: Bounds) -> Evidence:
        spec, plan = model.spec, model.plan
        command = model.definition.backend.version_command(spec)
        patient = bounds is ON_REQUEST
        environment = surroundings({**plan.environment, **dict(a.split("=", 1) for a in spec.env)}, os.environ)

        def ask() -> Version | None:
            return self._versions.ask(command, environment, bounds.version, patient=patient) if command else None

        held = await gpus.memory() if spec.gpus else {}
        holders = await in_thread(bounds.files, lambda: gpus.strays(held)) if held else []
        seen, version, access = await asyncio.gather(
            _or_none(in_thread(bounds.files, lambda: self._look(model))),
            # The bound is the program's; the thread has a little more, to end it.
            _or_none(in_thread(bounds.version + 1, ask)) if command else _nothing(),
            self._ask_hub(model, environment, bounds),
        )
        return Evidence(
            survey=seen.survey if seen else None,
            unseen=seen.unseen if seen else (),
            command=command,
            version=version,
            asked_seconds=bounds.version,
            impatient=not patient,
            drop_ins=bool(self._systemd.cached(model.unit).drop_in_paths),
            gpus=seen.gpus if seen else Gpus(None),
            explicit_gpus="gpus" in model.definition.explicit,
            holders=holders,
            folders=seen.folders if seen else (),
            hub=access,
        )

    def _look(self, model: Model) -> _Seen:
        """At the disk; blocking."""
        spec, plan = model.spec, model.plan
        survey, hidden = None, []
        if not is_reference(spec.path):
            survey = _survey(spec.path)
            paths = [(p, Path(os.path.realpath(p))) for p in (Path(spec.path), *survey.files)]
            gone = set(unseen((real for _, real in paths), spec, plan, self._scope, self._tools))
            hidden = [(path, real) for path, real in paths if real in gone]
        folders = tuple(machine.folder(Path(p)) for p in written_folders(spec, plan))
        return _Seen(survey, tuple(hidden), folders, machine.gpus(self._root))

    async def _ask_hub(self, model: Model, environment: dict[str, str], bounds: Bounds) -> Hub | None:
        """What the hub says of a reference that is not on disk; None for what is no model of the hub's."""
        variables = {**self._scope.hub, **environment}
        name = hub.repository(model.spec.path) if is_reference(model.spec.path) else None
        if name is None or not variables.keys() & {"HF_HUB_CACHE", "LLAMA_CACHE"}:
            return None
        known = name

        def look() -> tuple[bool, str]:
            cached = hub.is_cached(known, variables)
            try:
                secret = "" if cached else self._secret(model.name, "HF_TOKEN") or ""
            except CortexError:
                secret = ""
            return cached, secret or hub.saved_token(variables, environment, self._scope.home)

        found = await _or_none(in_thread(bounds.files, look))
        if found is None or found[0]:
            return Hub(name, cached=True)
        token = found[1]
        if "HF_HUB_CACHE" in variables and variables.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            return Hub(name, offline=True)
        endpoint = variables.get("HF_ENDPOINT") or hub.ENDPOINT
        access = await hub.ask(name, endpoint, token, bounds.hub)
        return Hub(name, has_token=bool(token), access=access)


def _survey(path: str) -> Survey:
    return modelfiles.survey(Path(path))


async def _nothing() -> None:
    return None


async def _or_none(looking: Awaitable[_T]) -> _T | None:
    """None where a file system or a program does not answer in time, or not at all."""
    try:
        return await looking
    except (TimeoutError, OSError):
        return None


def from_error(sentence: CortexError) -> Finding:
    """What another check says in a sentence of its own: `what=value: problem; remedy`, or `port 8000 is held by ...; remedy`."""
    text, _, remedy = str(sentence).partition("; ")
    if match := re.fullmatch(r"(?s)([\w.]+)(?:=('[^']*'|\S*))?: (.*)", text):
        return error(match[1], (match[2] or "").strip("'"), match[3], remedy)
    if match := re.fullmatch(r"port (\d+) (.*)", text):
        return error("port", match[1], match[2], remedy)
    return error("model", "", text, remedy)
