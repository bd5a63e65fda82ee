"""A registered model as cortexd holds it in memory: its definition, and what is remembered of its runs."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cortexd import limits
from cortexd.backends import Backend, LaunchPlan
from cortexd.budget import Budget
from cortexd.diagnosis.why import Cause
from cortexd.events import Ending
from cortexd.health.policy import HealthState
from cortexd.health.probe import Questions
from cortexd.jobs import Job
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.names import unit_name
from cortexd.secrets import NO_SECRETS, Known
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import probe_address


def url_of(url: str, path: str) -> str:
    """A path of a server, as curl takes it: --unix-socket SOCKET http://localhost/… where it listens on one."""
    if url.startswith("unix:"):
        return f"--unix-socket {url.removeprefix('unix:')} http://localhost{path}"
    return url + path


@dataclass(frozen=True, slots=True)
class Definition:
    """What a model is: `explicit` is what was asked for; the rest follows from it."""

    explicit: Mapping[str, Value]
    spec: ModelSpec
    backend: Backend
    plan: LaunchPlan
    text: str
    """The unit file as it should be."""
    secrets: Known = NO_SECRETS
    lasting: str = ""
    """The unit file with limits that are everybody's, where its backend sizes something by them; empty where it does not."""
    _digest: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    """Made when it is first asked for."""

    @property
    def url(self) -> str:
        """Where a client on this machine reaches its server."""
        if self.spec.socket:
            return f"unix:{self.spec.socket}"
        address, port = probe_address(self.spec.host), self.spec.port
        return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    @property
    def digest(self) -> str:
        """Of what a run has for good: the unit file without limits and what is sized by them, and which secrets go with it."""
        if not self._digest:
            found = files.digest(self.lasting or self.text, limits.DIRECTIVES)
            self._digest.append(f"{found}+{self.secrets.revision}" if self.secrets.revision else found)
        return self._digest[0]

    @property
    def questions(self) -> Questions:
        """What its server can be asked. What a well one says is known of its backend's own endpoint alone."""
        healthy = self.backend.healthy if self.spec.health.endpoint == self.backend.endpoint else ""
        return Questions(healthy, self.plan.engine, self.plan.activity)

    def serving(self, run: str, *, known: bool = True) -> Serving:
        """What a run of this definition serves; `known`: it is certain that the unit file was as it is now."""
        if not known:
            return Serving(run, self.url, self.spec.health.endpoint)
        return Serving(run, self.url, self.spec.health.endpoint, self.digest, self.questions)


@dataclass(frozen=True, slots=True)
class Serving:
    """What the current run was started with. Settings change meanwhile; its server does not."""

    run: str = ""
    """The run's InvocationID; empty while nothing runs."""
    url: str = ""
    endpoint: str = ""
    digest: str = ""
    """The definition's; empty where it is not known."""
    questions: Questions = field(default_factory=Questions)
    """None where it is not known what the server is."""


@dataclass
class Model:
    """A registered model: its definition, and what cortexd remembers of it beside systemd and the database."""

    name: str
    definition: Definition
    health: HealthState = field(default_factory=HealthState)
    ending: Ending = field(default_factory=Ending)
    cause: Cause | None = None
    """Why the run `cause_run` ended, where that one failed."""
    cause_run: str = ""
    budget: Budget = field(default_factory=Budget)
    """Its failed runs in a row, kept true with every event of the audit log."""
    loads: tuple[float, ...] = ()
    """Seconds that its last loads took, oldest first."""
    latest_start: Job | None = None
    """The last start or restart that was asked for through cortexd, unless a stop came after it."""
    serving: Serving = field(default_factory=Serving)
    rewritten: bool = False
    """Its unit file was found missing or outdated at the daemon's start."""
    file_state: FileState = FileState.MISSING
    file_stamp: files.Stamp = None
    """Of the unit file that has this state."""
    only_comments: bool = False
    """It was edited, and has systemd do the same all the same."""
    sandbox_problem: str = ""
    """What of its sandbox is not in force on this machine, where that is known."""
    warnings: tuple[str, ...] = ()
    secrets_problem: str = ""
    """Why its secrets cannot be read, where they cannot."""
    backend_problem: str = ""
    """Why its backend's file cannot be used, where it cannot: its unit file stays as it is until then."""
    backend_changed: bool = False
    """Its backend's file says something else since its unit file was written."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one use-case changes this model."""

    @property
    def unit(self) -> str:
        """The systemd unit's name."""
        return unit_name(self.name)

    @property
    def url(self) -> str:
        """Where a client on this machine reaches its server: the one that runs, else the next one."""
        return self.serving.url or self.definition.url

    @property
    def endpoint(self) -> str:
        """The health endpoint of the server that runs, else of the next one."""
        return self.serving.endpoint if self.serving.run else self.spec.health.endpoint

    @property
    def probed(self) -> bool:
        """Whether it is asked, while it runs, whether it is well."""
        return self.spec.health.enabled and bool(self.endpoint)

    @property
    def questions(self) -> Questions:
        """What the server that runs can be asked."""
        return self.serving.questions if self.serving.run else self.definition.questions

    @property
    def health_url(self) -> str:
        """What is asked whether it is well."""
        return url_of(self.url, self.endpoint)

    @property
    def gave_up(self) -> str:
        """Why it is restarted no longer; empty while it is."""
        return self.budget.gave_up

    def is_last(self, run: str) -> bool:
        """Whether it is stopped for good when this run has failed, too."""
        return bool(self.gave_up) or self.budget.failed_with(run) >= self.spec.restart.max_restarts

    @property
    def usual_load(self) -> float:
        """Seconds from start to ready, as its last loads were (the median); 0 where there was none."""
        return statistics.median(self.loads) if self.loads else 0.0

    @property
    def outdated(self) -> bool:
        """Whether the server that runs was started with other settings, secrets or words of its backend's file. While its unit
        file is somebody else's, a restart would bring none of them."""
        if not self.serving.run or self.drifted:
            return False
        return self.backend_changed or self.serving.digest != self.definition.digest

    def serves(self, run: str, *, known: bool = True) -> Serving:
        """What a run that begins now serves. Somebody else's unit file may have it be anything, which shows as outdated once the
        file is ours again."""
        serving = self.definition.serving(run, known=known)
        return replace(serving, digest="") if self.drifted and not self.only_comments else serving

    @property
    def drifted(self) -> bool:
        """Whether its unit file is not what cortexd wrote; settings do not reach it then."""
        return self.file_state in (FileState.EDITED, FileState.FOREIGN)

    @property
    def spec(self) -> ModelSpec:
        """Every setting, filled in."""
        return self.definition.spec

    @property
    def plan(self) -> LaunchPlan:
        """How its server is run."""
        return self.definition.plan
