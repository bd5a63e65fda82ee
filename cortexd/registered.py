"""A registered model as cortexd holds it in memory: its definition, and what is remembered of its runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from cortexd.backends import Backend, LaunchPlan
from cortexd.events import Ending
from cortexd.health.policy import HealthState
from cortexd.jobs import Job
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.names import unit_name
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import probe_address


@dataclass(frozen=True, slots=True)
class Definition:
    """What a model is: `explicit` is what was asked for; the rest follows from it."""

    explicit: Mapping[str, Value]
    spec: ModelSpec
    backend: Backend
    plan: LaunchPlan
    text: str
    """The unit file as it should be."""

    @property
    def url(self) -> str:
        """Where a client on this machine reaches its server."""
        address, port = probe_address(self.spec.host), self.spec.port
        return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    @property
    def digest(self) -> str:
        """Of the unit file."""
        return files.digest(self.text)

    def serving(self, run: str, *, known: bool = True) -> Serving:
        """What a run of this definition serves; `known`: it is certain that the unit file was as it is now."""
        return Serving(run, self.url, self.spec.health.endpoint, self.digest if known else "")


@dataclass(frozen=True, slots=True)
class Serving:
    """What the current run was started with. Settings change meanwhile; its server does not."""

    run: str = ""
    """The run's InvocationID; empty while nothing runs."""
    url: str = ""
    endpoint: str = ""
    digest: str = ""
    """Of the unit file; empty where it is not known."""


@dataclass
class Model:
    """A registered model: its definition, and what cortexd remembers of it beside systemd and the database."""

    name: str
    definition: Definition
    health: HealthState = field(default_factory=HealthState)
    ending: Ending = field(default_factory=Ending)
    latest_start: Job | None = None
    """The last start or restart that was asked for through cortexd, unless a stop came after it."""
    serving: Serving = field(default_factory=Serving)
    rewritten: bool = False
    """Its unit file was found missing or outdated at the daemon's start."""
    file_state: FileState = FileState.MISSING
    warnings: tuple[str, ...] = ()
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
    def health_url(self) -> str:
        """What is asked whether it is well."""
        return self.url + self.endpoint

    @property
    def outdated(self) -> bool:
        """Whether the server that runs was started with other settings."""
        return bool(self.serving.run) and self.serving.digest != self.definition.digest

    @property
    def spec(self) -> ModelSpec:
        """Every setting, filled in."""
        return self.definition.spec

    @property
    def plan(self) -> LaunchPlan:
        """How its server is run."""
        return self.definition.plan
