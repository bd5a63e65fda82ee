"""Starting and stopping: what is checked, in which order things are asked of systemd, and what a job's end means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from cortexd import ports
from cortexd.catalog import Catalog
from cortexd.diagnosis.examiner import Examiner, from_error
from cortexd.diagnosis.finding import Finding
from cortexd.diagnosis.preflight import merged
from cortexd.diagnosis.why import Cause
from cortexd.errors import InvalidConfig, JobCanceled, JobFailed, PortInUse, ShuttingDown, StoreFailed
from cortexd.events import REFUSED, Ending, Event, Priority
from cortexd.intents import Intents
from cortexd.jobs import Job, JobState, JobTable, Work
from cortexd.registered import Model
from cortexd.registration import Caller
from cortexd.runs import NO_MORE_RUNS, unclean
from cortexd.states import describe_end
from cortexd.store import Intent, Store
from cortexd.systemd.protocol import Systemd, SystemdJob
from cortexd.units.render import missing_folders, probe_address

CAUSE_SECONDS = 1.0
"""What a start that failed waits at most for its cause, which needs the journal; it is there after some 0.2 s."""

_MARGIN = 30.0  # seconds that systemd may take beyond its own time-outs before we stop waiting


class Lifecycle:
    """The use-cases that end in a job. Every method raises NoSuchModel, and ShuttingDown once the daemon ends."""

    def __init__(self, catalog: Catalog, store: Store, systemd: Systemd, examiner: Examiner, intents: Intents) -> None:
        self._catalog, self._store, self._systemd = catalog, store, systemd
        self._examiner, self._intents = examiner, intents
        self._closing = False
        self._starting = asyncio.Lock()
        self.jobs = JobTable()
        self.cause_of: Callable[[str, float], Awaitable[Cause | None]] = _no_cause
        """Tells why a run ended, waiting for that no longer than so many seconds."""

    async def close(self) -> None:
        """End our waiting; systemd goes on."""
        self._closing = True
        await self.jobs.close()

    def check_open(self) -> None:
        """Raise ShuttingDown when the daemon ends."""
        if self._closing:
            raise ShuttingDown("cortexd is ending; try again in a moment")

    async def record_end(self, model: Model, kind: str, message: str, caller: Caller) -> None:
        """Write to the audit log who asked for a run's end, before it is done; also where the disk is full."""
        await self._store.add_event(self.event(model, kind, message, caller), last=True)

    def event(self, model: Model, kind: str, message: str, caller: Caller) -> Event:
        """That somebody asked for something, of the run that there is."""
        run = self._systemd.cached(model.unit).invocation_id
        return Event(model=model.name, kind=kind, message=message, invocation_id=run, actor=caller.actor)

    async def start(self, name: str, caller: Caller) -> Job:
        """Start a model; the job ends when it is ready. Raises InvalidConfig and PortInUse before anything is done."""
        self.check_open()
        model = self._catalog.get(name)
        async with self._catalog.locked(model):
            unit = await self._systemd.refresh(model.unit)
            async with self._telling_refusal(model, caller):
                warnings = [] if unit.running else await self._preflight(model)
            # One start is queued at a time, so that two models cannot both find their common port free.
            async with self._starting:
                unit = self._systemd.cached(model.unit)
                async with self._telling_refusal(model, caller):
                    if not unit.running:
                        await self._check_port(model)
                await self._catalog.ensure_unit(model)
                self._catalog.check_loaded(model)
                warnings = [*warnings, *self._catalog.drift(model)]
                asked = self.event(model, "start", "start asked for", caller)
                async with self._intents.doing(Intent(model=name, kind="start", actor=caller.actor), asked=asked):
                    if unit.active_state != "active":
                        await self._systemd.reset_failed(model.unit)  # a person's start is no part of a crash loop
                    if unit.sub_state.startswith("auto-restart"):
                        # At once; a start would wait out RestartSec on 252.
                        queued = await self._systemd.restart_unit(model.unit)
                    else:
                        queued = await self._systemd.start_unit(model.unit)
        return self._spawn_start("start", model, lambda job: self._await_start(model, queued, job), warnings)

    def _spawn_start(self, kind: str, model: Model, work: Work, warnings: Iterable[str]) -> Job:
        def cancel(caller: Caller) -> Coroutine[Any, Any, Job]:
            return self.stop(model.name, caller)

        model.latest_start = job = self.jobs.spawn(kind, model.name, work, cancel)
        job.warnings += warnings
        return job

    @asynccontextmanager
    async def _telling_refusal(self, model: Model, caller: Caller) -> AsyncIterator[None]:
        """Keep why a start was refused, for whoever asks later why the model does not run."""
        try:
            yield
        except (InvalidConfig, PortInUse) as e:
            event = self.event(model, REFUSED, str(e), caller)
            await self._store.add_event(replace(event, priority=Priority.WARNING))
            raise

    async def _preflight(self, model: Model) -> list[str]:
        """What a start should be warned of. Raises InvalidConfig with what forbids it."""
        await self._catalog.check(model)
        return await self._examiner.before_start(model)

    async def examine(self, name: str) -> list[Finding]:
        """Everything that speaks against a start of the model, errors first; its settings stay as they are."""
        model = self._catalog.get(name)
        found: list[Finding] = []
        try:
            async with self._catalog.locked(model):
                await self._catalog.check(model)
        except InvalidConfig as e:
            found.append(from_error(e))
        unit = await self._systemd.refresh(model.unit)
        if not unit.running or model.url != model.definition.url:  # else it is itself that holds its port
            try:
                await self._check_port(model)
            except PortInUse as e:
                found.append(from_error(e))
        try:
            found += await self._examiner.examine(model)
        except InvalidConfig as e:
            found.append(from_error(e))
        return merged(found)

    async def _await_start(self, model: Model, queued: SystemdJob, job: Job) -> None:
        """Wait until the model is ready. Where a later start or restart of ours superseded this one, its end is this one's."""
        result = await queued.wait(model.spec.health.startup_timeout + model.plan.stop_seconds + 2 * _MARGIN)
        unit = self._systemd.cached(model.unit)
        if result in ("done", "skipped") and unit.active_state in ("active", "activating", "reloading"):
            return
        if await self._follow(model, job):
            return
        if result == "canceled":
            raise JobCanceled(f"the start of {model.name} was cancelled, or superseded by a stop")
        if result == "dependency":
            missing = await asyncio.to_thread(missing_folders, model.spec, model.plan)
            raise JobFailed(f"a folder that it must write cannot be made: {missing}; make it, or change ReadWritePaths")
        cause = await self.cause_of(unit.invocation_id, CAUSE_SECONDS) if unit.invocation_id else None
        told = cause.sentence if cause else describe_end(unit)
        why = told or (f"systemd says {result!r}" if result != "done" else "it ended at once")
        coming = NO_MORE_RUNS if model.is_last(unit.invocation_id) else "systemd tries again"
        raise JobFailed(f"{why}; {coming}" if unit.sub_state.startswith("auto-restart") else why)

    async def _follow(self, model: Model, job: Job) -> bool:
        """Wait for the later start that superseded `job`, if there is one: its end, well or not, is the end of both."""
        later = model.latest_start
        if later is None or later is job or later.state is not JobState.RUNNING:
            return False
        job.warnings += await later.wait()
        return True

    async def _check_port(self, model: Model) -> None:
        spec = model.spec
        for other in self._catalog.models.values():
            same = other is not model and other.spec.port == spec.port and ports.overlap(other.spec.host, spec.host)
            if same and self._systemd.cached(other.unit).running:
                raise PortInUse(
                    f"port {spec.port} is held by model {other.name}; stop it, or 'cortexctl set {spec.name} port=auto'"
                )
        found = await asyncio.to_thread(ports.holder, probe_address(spec.host), spec.port)
        if found and spec.socket:
            raise PortInUse(f"{spec.socket} is held by {found}; stop it, or 'cortexctl set {spec.name} host=PATH'")
        if found:
            raise PortInUse(f"port {spec.port} is held by {found}; stop it, or 'cortexctl set {spec.name} port=auto'")

    async def stop(self, name: str, caller: Caller) -> Job:
        """Stop a model in whatever phase it is; it ends stopped, never failed."""
        self.check_open()
        model = self._catalog.get(name)
        asked = self.event(model, "stop", "stop asked for", caller)
        intent = Intent(model=name, kind="stop", details={"run": asked.invocation_id}, actor=caller.actor)
        try:
            number = await self._intents.begin(intent, asked, last=True)  # before anybody is told that there is a job
        except StoreFailed as e:
            raise StoreFailed(f"{e}; 'systemctl --user stop {model.unit}' stops it all the same") from e
        model.latest_start = None

        async def work(job: Job) -> None:
            async with self._intents.ending(number):
                await self.stop_and_wait(model, job)

        return await self.begun(number, lambda: self.jobs.spawn("stop", name, work))

    async def begun(self, number: int, spawn: Callable[[], Job]) -> Job:
        """Spawn the job that sees to an intent's ending."""
        try:
            return spawn()
        except BaseException:
            async with self._intents.ending(number):
                raise

    def go_on_stopping(self, model: Model) -> Job:
        """Finish a stop in which a daemon was killed."""
        return self.jobs.spawn("stop", model.name, lambda job: self.stop_and_wait(model, job))

    async def stop_and_wait(self, model: Model, job: Job) -> Ending:
        """Stop a model as part of a job; an end that was not clean is a warning of the job's. Returns what it left as the
        model's ending: another one there means that another stop was asked for meanwhile."""
        unit = self._systemd.cached(model.unit)
        if not unit.running:
            unit = await self._systemd.refresh(model.unit)
        was_running, was_loading = unit.running, unit.active_state == "activating"
        ending = Ending(unit.invocation_id, "stop")
        if unit.load_state == "not-found" and unit.active_state == "inactive":
            return model.ending  # neither a file nor a process: systemd knows nothing that it could stop
        with bringing_to_end(model, ending):
            queued = await self._systemd.stop_unit(model.unit)
        result = await queued.wait(2 * model.plan.stop_seconds + _MARGIN)
        if result == "canceled":
            raise JobCanceled(f"the stop of {model.name} was superseded by a start")
        unit = self._systemd.cached(model.unit)
        if unit.active_state == "failed":
            event = Event(model=model.name, kind="stopped", message="stopped", invocation_id=unit.invocation_id)
            # With what a server exits that was interrupted while it loaded tells nothing.
            if was_running and not (was_loading and unit.result == "exit-code"):
                message = unclean(unit, model.plan.stop_seconds)
                job.warnings.append(message)
                event = replace(event, kind="stop-unclean", message=message, priority=Priority.WARNING)
            if model.ending is ending or model.ending != ending:  # else it is told by a later stop of the same run
                if was_running:
                    await self._store.add_event(event, last=True)
                await self._systemd.reset_failed(model.unit)
                unit = await self._systemd.refresh(model.unit)
        if unit.running:
            raise JobFailed(f"it is still {unit.active_state} ({unit.sub_state}); see 'cortexctl logs {model.name}'")
        return ending

    async def restart(self, name: str, caller: Caller) -> Job:
        """Restart, or start if it does not run. A start under way is stopped first: systemd would merge the two."""
        self.check_open()
        model = self._catalog.get(name)
        unit = await self._systemd.refresh(model.unit)
        if not unit.running:
            return await self.start(name, caller)
        async with self._catalog.locked(model):
            warnings = await self._preflight(model)  # better known before it is stopped
            if model.url != model.definition.url:  # it moves
                await self._check_port(model)
            await self._catalog.ensure_unit(model)
            warnings = [*warnings, *self._catalog.drift(model)]
            asked = self.event(model, "restart", "restart asked for", caller)
            if unit.active_state == "active":
                await self._store.add_event(asked)
                with bringing_to_end(model, Ending(unit.invocation_id, "stop")):
                    await self._systemd.reset_failed(model.unit)
                    queued = await self._systemd.restart_unit(model.unit)
                return self._spawn_start("restart", model, lambda job: self._await_start(model, queued, job), warnings)
            number = await self._intents.begin(Intent(model=name, kind="restart", actor=caller.actor), asked)

        async def stop_then_start(job: Job) -> None:
            try:
                async with self._intents.ending(number):
                    ending = await self.stop_and_wait(model, job)
                    if model.ending is not ending:
                        raise JobCanceled(f"the restart of {name} was superseded by a stop")
                    await self._systemd.reset_failed(model.unit)
                    queued = await self._systemd.start_unit(model.unit)
            except JobCanceled:
                if await self._follow(model, job):
                    return
                raise
            await self._await_start(model, queued, job)

        return await self.begun(number, lambda: self._spawn_start("restart", model, stop_then_start, warnings))


async def _no_cause(run: str, seconds: float) -> Cause | None:
    return None


@contextmanager
def bringing_to_end(model: Model, ending: Ending) -> Iterator[None]:
    """Remember that a run's end is ours, from before systemd is asked; where asking fails, it is not."""
    before, model.ending = model.ending, ending
    try:
        yield
    except BaseException:
        model.ending = before
        raise
