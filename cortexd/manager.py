"""The use-cases: what can be asked of cortexd, in the order in which each is done. Knows no D-Bus and no SQL."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import signal as signals
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from cortexd.backends import Listed, list_backends
from cortexd.catalog import Catalog
from cortexd.diagnosis.diagnoser import Diagnoser
from cortexd.diagnosis.examiner import Examiner
from cortexd.diagnosis.finding import Finding
from cortexd.diagnosis.why import Cause
from cortexd.errors import Busy, CortexError, InvalidConfig, JobFailed, NoSuchModel
from cortexd.events import Ending, Event
from cortexd.health.policy import Outcome, Probe
from cortexd.health.probe import Prober
from cortexd.intents import UNBORN, Intents
from cortexd.jobs import Job
from cortexd.lifecycle import Lifecycle, bringing_to_end
from cortexd.limits import Verdict, lowered
from cortexd.names import unit_name
from cortexd.observer import Observer
from cortexd.recovery import Recovery
from cortexd.registered import Model
from cortexd.registration import Caller
from cortexd.repair import Repaired, Repairs
from cortexd.sandbox.judging import Row
from cortexd.scope import Scope
from cortexd.secrets import check_key, check_value
from cortexd.states import Judgement, judge
from cortexd.store import EventQuery, Intent, Store
from cortexd.systemd.protocol import UNKNOWN, Logind, Systemd, UnitState, UnitUsage
from cortexd.units.files import FileState
from cortexd.units.render import Tools, restart_pause

log = logging.getLogger(__name__)
_TRYING = 5.0  # seconds that a change of a sandbox is held up by its trial, which takes a tenth of it


@dataclass(frozen=True, slots=True)
class ModelView:
    """Everything that can be said of a model at one moment."""

    model: Model
    unit: UnitState
    judgement: Judgement


class Manager:
    """Queries and configuration; `life` has what ends in a job. Every method that takes a name raises NoSuchModel, and
    every one that changes something records who asked."""

    def __init__(
        self, scope: Scope, store: Store, systemd: Systemd, logind: Logind, prober: Prober, tools: Tools
    ) -> None:
        self._store, self._systemd, self._logind, self._prober = store, systemd, logind, prober
        self._scope, self._release = scope, tools.systemd
        self._intents = Intents(store)
        self.recovery = Recovery(store, self._intents, self._finish)
        self.catalog = Catalog(scope, tools, store, systemd, self._intents)
        self._examiner = Examiner(scope, tools, systemd, self.catalog.secrets.value)
        self._examiner.prover.on_namespaces = self.catalog.redefine
        self._proving: set[asyncio.Task[None]] | None = None
        """Looks at changed models' sandboxes, once `prove` was called."""
        self._repairs = Repairs(self.catalog, systemd, self._intents)
        self.life = Lifecycle(self.catalog, store, systemd, self._examiner, self._intents)
        self._diagnoser = Diagnoser(scope, self.catalog, store, lambda name: self.on_change(name))
        self.life.cause_of = self._diagnoser.cause_of
        self._observer = Observer(
            scope, self.catalog, store, systemd, prober, self._diagnoser, lambda name: self.on_change(name)
        )
        self.catalog.on_change = lambda name: self.on_change(name)
        self.on_change: Callable[[str], None] = lambda name: None
        """Called with a model's name when anything about it may have changed."""
        store.on_event = self._told
        self.on_event: Callable[[Event], None] = lambda event: None
        """Called with every event of the audit log."""
        self.on_add: Callable[[str], None] = lambda name: None
        self.on_remove: Callable[[str], None] = lambda name: None

    async def start(self) -> None:
        """Reconcile with systemd: unit files, running models, runs that began while nobody watched."""
        await self._examiner.start()
        await self.catalog.load()
        await self._observer.start()
        await self.recovery.find()

    async def go_on(self) -> None:
        """Finish what a daemon that was killed had begun, and what systemd refused when we started."""
        await asyncio.gather(self.recovery.run(), self.catalog.reread.at_last())

    def _told(self, event: Event) -> None:
        """An event is on disk."""
        self.catalog.count(event)
        self.on_event(event)

    async def _finish(self, intent: Intent) -> Event | None:
        """What is left of something that a daemon was killed in; returns the event that is still to be written."""
        model = self.catalog.models.get(intent.model)
        if model is None:
            if intent.kind in UNBORN:
                await self._forget(intent.model)
            return None
        name, caller = model.name, Caller(intent.actor)
        unit = await self._systemd.refresh(model.unit)
        match intent.kind:
            case "unregister" if intent.details.get("force", True) or not unit.running:
                enabled = bool(intent.details.get("enabled"))
                await (await self.unregister(name, caller, force=True, enabled=enabled)).wait()
            case "enable":
                await self.enable(name, caller, linger=bool(intent.details.get("linger")))
            case "disable":
                await self.disable(name, caller)
            case "repair":
                if (await self.repair(name, caller)).drift.state is FileState.CURRENT:  # it was written already
                    await self._systemd.reload()
                    return self.life.event(model, "repair", str(intent.details.get("message")), caller)
            case "reset-failed":
                await self.reset_failed(name, caller)
            case "start" | "restart" if not unit.running:
                await self.life.start(name, caller)
            case "enable-now":
                await self._start_and_enable(model, caller, enabled=bool(intent.details.get("enabled")))
            case "stop" if unit.invocation_id == intent.details.get("run"):
                await self.life.go_on_stopping(model).wait()
            case "secret-set" | "secret-removed" if model.definition.secrets.revision != intent.details.get("revision"):
                return self._secret_event(model, intent.kind, str(intent.details.get("key")), caller)
        return None

    async def _forget(self, name: str) -> None:
        """What is left of a model whose files the catalog has cleared away."""
        await self._observer.removed(name)
        await self._systemd.reload()
        await self._systemd.reset_failed(unit_name(name))

    async def prove(self) -> None:
        """See what of models' sandboxes is in force on this machine, now and whenever a model is new or changed, so that a
        warning says what is not. Takes a moment once a boot, for each sandbox that differs."""
        self._proving = set()
        await self._prove(list(self.catalog.models))

    async def _prove(self, names: Sequence[str]) -> None:
        for name in names:
            if model := self.catalog.models.get(name):
                before = model.sandbox_problem
                try:
                    await self._examiner.prover.rows(model)
                except CortexError as e:
                    log.warning("%s: its sandbox cannot be tried: %s", name, e)
                if model.sandbox_problem != before:
                    self.catalog.sandbox_seen(model)

    def _prove_soon(self, *names: str) -> set[asyncio.Task[None]]:
        """Returns what can be waited for."""
        if self._proving is None:
            return set()
        task = asyncio.create_task(self._prove(names))
        self._proving.add(task)
        task.add_done_callback(self._proving.discard)
        return {task}

    async def security(self, name: str, *, again: bool = False) -> list[Row]:
        """What of the model's sandbox was asked for, and what of that is in force; tried anew where `again`."""
        model = self.catalog.get(name)
        rows = await self._examiner.prover.rows(model, again=again, apart=True)
        self.catalog.sandbox_seen(model)
        return rows

    def resumed(self) -> None:
        """The machine has slept: what failed before does not count."""
        self._observer.liveness.resumed()

    async def close(self) -> None:
        """End our own work; models go on running."""
        proving = [*(self._proving or ())]
        for task in proving:
            task.cancel()
        await asyncio.gather(*proving, return_exceptions=True)  # a look from inside takes its unit with it
        await self.life.close()
        await self._observer.close()
        self._diagnoser.close()

    # What is there

    @property
    def systemd_version(self) -> str:
        """The version of the systemd manager."""
        return self._systemd.version

    def view(self, name: str) -> ModelView:
        """The model as it is now."""
        model = self.catalog.get(name)
        unit = self._systemd.cached(model.unit)
        ending = model.ending.by if model.ending.run == unit.invocation_id else ""
        cause = model.cause.sentence if model.cause and model.cause_run == unit.invocation_id else ""
        pause = restart_pause(model.spec.restart.restart_seconds, unit.n_restarts, self._release)
        judgement = judge(
            unit, model.health, model.spec, ending=ending, cause=cause, given_up=model.gave_up, pause=pause
        )
        return ModelView(model, unit, judgement)

    def match(self, patterns: Sequence[str]) -> list[str]:
        """Names that fit one of the shell patterns, sorted; none means all. A plain name must exist."""
        names = sorted(self.catalog.models)
        for pattern in patterns:
            if not set(pattern) & set("*?[") and pattern not in self.catalog.models:
                raise NoSuchModel(pattern)
        return [n for n in names if not patterns or any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    async def refresh(self, names: Sequence[str]) -> None:
        """Look at models afresh: systemd forgets an idle unit and tells no more of its drop-ins, and nobody tells of a
        unit file that was edited."""
        models = [self.catalog.get(name) for name in names]
        await self.catalog.look(models)
        idle = [model.unit for model in models if not self._systemd.cached(model.unit).running]
        await asyncio.gather(*map(self._systemd.refresh, idle))

    async def usage(self, names: Sequence[str]) -> dict[str, UnitUsage]:
        """Memory, CPU time and tasks of models that run."""
        units = {n: self.catalog.get(n).unit for n in names}
        running = [unit for unit in units.values() if self._systemd.cached(unit).running]
        found = await self._systemd.usage(running) if running else {}
        return {name: found.get(unit, UnitUsage()) for name, unit in units.items()}

    async def limits(self, names: Sequence[str]) -> dict[str, list[Verdict]]:
        """Which limits of models that run are in force."""
        models = [self.catalog.get(name) for name in names]
        running = {model.unit: model.spec for model in models if self._systemd.cached(model.unit).running}
        found = await self.catalog.live.verdicts(running) if running else {}
        return {model.name: found.get(model.unit, []) for model in models}

    async def why(self, name: str) -> Cause:
        """Why the model does not run; where it does, that it does."""
        view = self.view(name)
        return await self._diagnoser.why(view.model, view.unit, view.judgement)

    async def events(self, query: EventQuery) -> list[Event]:
        """The audit log."""
        return await self._store.events(query)

    async def backends(self, search_path: str) -> list[tuple[Listed, str]]:
        """All backends, each with its executable on that PATH (empty: none); files that cannot be used, too."""
        parts = (search_path or self._scope.search_path).split(":")
        absolute = ":".join(part for part in parts if part.startswith("/"))

        def find() -> list[tuple[Listed, str]]:
            listed = list_backends(self._scope)
            return [(each, (each.backend and each.backend.find(absolute)) or "") for each in listed]

        return await asyncio.to_thread(find)

    # Configuration

    async def register(
        self, name: str, settings: Mapping[str, object], caller: Caller, *, api_key: bool = False
    ) -> Sequence[str]:
        """Register a model, with a new API key where that is asked for; returns warnings."""
        (model,) = await self.register_all({name: settings}, caller, api_key=api_key)
        return model.warnings

    async def register_all(
        self, wanted: Mapping[str, Mapping[str, object]], caller: Caller, *, api_key: bool = False
    ) -> list[Model]:
        """Register models of these names and settings: all of them, or none."""
        self.life.check_open()
        models = await self.catalog.add(wanted, caller, api_key=api_key)
        for model in models:
            self._observer.added(model)
            self.on_add(model.name)
        self._prove_soon(*wanted)
        return models

    async def set(self, name: str, settings: Mapping[str, object], caller: Caller) -> tuple[bool, Sequence[str]]:
        """Change settings; returns whether a restart is needed, and warnings."""
        self.life.check_open()
        model = self.catalog.get(name)
        async with self.catalog.locked(model):
            sandbox, before, used = model.spec.hardening, model.spec.limits, (await self.usage([name]))[name].memory
            told = await self.catalog.change(model, settings, caller)
            self._observer.watch(model)
        trying = self._prove_soon(name)
        if trying and model.spec.hardening != sandbox:  # what is warned of shall be what is asked for now
            await asyncio.wait(trying, timeout=_TRYING)
        if used != UNKNOWN and (warning := lowered(before, model.spec.limits, used)):
            told.append(warning)
        self.on_change(name)
        return model.outdated, [*model.warnings, *told]

    async def set_secret(self, name: str, key: str, value: bytes, caller: Caller) -> bool:
        """Set a secret; returns whether a restart is needed to bring it to the server. Raises InvalidConfig for a key or a
        value that cannot be one, and StoreFailed."""
        self.life.check_open()
        model, secrets = self.catalog.get(name), self.catalog.secrets
        async with self.catalog.locked(model):
            if model.backend_problem:
                raise InvalidConfig(model.backend_problem)
            check_key(key, {*model.plan.environment, *model.plan.unset_environment} - {model.plan.api_key})
            check_value(value)
            async with self._changing_secret(model, "secret-set", key, caller):
                await asyncio.to_thread(secrets.set, name, key, value)
            await self._secrets_changed(model)
        return model.outdated

    async def remove_secret(self, name: str, key: str, caller: Caller) -> None:
        """Remove a secret. Raises NoSuchSecret, StoreFailed."""
        self.life.check_open()
        model, secrets = self.catalog.get(name), self.catalog.secrets
        async with self.catalog.locked(model):
            await asyncio.to_thread(secrets.check_has, name, key)
            async with self._changing_secret(model, "secret-removed", key, caller):
                await asyncio.to_thread(secrets.remove, name, key)
            await self._secrets_changed(model)

    def _changing_secret(self, model: Model, kind: str, key: str, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Whether it was done the next daemon sees by the file's revision, which every change draws anew."""
        details = {"key": key, "revision": model.definition.secrets.revision}
        intent = Intent(model=model.name, kind=kind, details=details, actor=caller.actor)
        return self._intents.doing(intent, self._secret_event(model, kind, key, caller))

    def _secret_event(self, model: Model, kind: str, key: str, caller: Caller) -> Event:
        return self.life.event(model, kind, f"secret {key} {kind.removeprefix('secret-')}", caller)

    async def _secrets_changed(self, model: Model) -> None:
        try:
            await self.catalog.see_secrets(model)
        finally:
            self.on_change(model.name)

    async def repair(self, name: str, caller: Caller, *, dry_run: bool = False) -> Repaired:
        """Write a unit file again that somebody deleted or edited, and keep what was there; only look where `dry_run`."""
        self.life.check_open()
        model = self.catalog.get(name)
        async with self.catalog.locked(model):
            if dry_run:
                return Repaired(await self._repairs.look(model))
            done = self.life.event(model, "repair", "", caller)
            repaired = await self._repairs.repair(model, caller.actor, done)
        self.on_change(name)
        return repaired

    async def unregister(self, name: str, caller: Caller, *, force: bool, enabled: bool = False) -> Job:
        """Disable, stop, remove the unit, forget. `enabled`: it was, before a daemon was killed in this."""
        self.life.check_open()
        model = self.catalog.get(name)
        unit = await self._systemd.refresh(model.unit)

        def check_stopped(unit: UnitState) -> None:
            if unit.running and not force:
                raise Busy(f"model {name!r} is {self.view(name).judgement.state}; stop it first, or use --force")

        check_stopped(unit)
        details = {"force": force, "enabled": enabled or unit.unit_file_state == "enabled"}
        # Before anybody is told that there is a job.
        intent = Intent(model=name, kind="unregister", details=details, actor=caller.actor)
        number = await self._intents.begin(intent, last=True)

        async def work(job: Job) -> None:
            async with self._intents.ending(number), self.catalog.locked(model):
                unit = await self._systemd.refresh(model.unit)  # a start may have come before us
                check_stopped(unit)
                if unit.running:
                    await self.life.record_end(model, "stop", "stop asked for, to unregister it", caller)
                try:
                    await self._systemd.disable_unit(model.unit)
                    await self.life.stop_and_wait(model, job)
                    if self._systemd.cached(model.unit).running:
                        raise JobFailed(f"model {name!r} was started again while it was being removed; try again")
                    job.warnings += await self.catalog.remove(model, caller.actor)
                except CortexError:
                    if details["enabled"]:  # it stays, and so does that
                        with suppress(CortexError):
                            await self._systemd.enable_unit(model.unit)
                            await self._links_read(model)
                    raise
                self.on_remove(name)
                await self._observer.removed(name)
                try:
                    await self._systemd.reload()
                    await self._systemd.reset_failed(model.unit)
                except CortexError as e:
                    job.warnings.append(f"is removed, but systemd still remembers its unit: {e}")

        return await self.life.begun(number, lambda: self.life.jobs.spawn("unregister", name, work))

    # Boot, signals, health

    async def enable(self, name: str, caller: Caller, *, linger: bool) -> list[str]:
        """Start at boot from now on; returns what is missing for a machine that nobody logs in to."""
        self.life.check_open()
        model = self.catalog.get(name)
        async with self.catalog.locked(model):
            await self.catalog.ensure_unit(model)
            done = self.life.event(model, "enable", "enabled", caller)
            intent = Intent(model=name, kind="enable", details={"linger": linger}, actor=caller.actor)
            async with self._intents.doing(intent, done):
                await self._systemd.enable_unit(model.unit)
                warnings = await self._links_read(model)
                warnings += await self._missing_at_boot(linger)
        self.on_change(name)
        return warnings

    async def _links_read(self, model: Model) -> list[str]:
        """Have systemd see which units are enabled. What counts at boot are the links themselves, and they are there."""
        try:
            await self._systemd.reload()
        except CortexError as e:
            told = f"systemd has not read its unit files again: {e}; run 'systemctl --user daemon-reload'"
            log.warning("%s: %s", model.name, told)
            await self._systemd.refresh(model.unit)
            return [told]
        return []

    async def _missing_at_boot(self, linger: bool) -> list[str]:
        """What keeps models from starting without a login, after we have tried to mend it where `linger` says so."""
        lingers = await self._logind.linger()
        if lingers:
            return []
        known = "you do not linger" if lingers is False else "logind does not say whether you linger"
        if linger:
            try:
                await self._logind.set_linger(True)
                return []
            except CortexError as e:
                known = str(e)
        return [f"{known}: without it models start at your login and end at your logout; run 'loginctl enable-linger'"]

    async def start_and_enable(self, name: str, caller: Caller) -> Job:
        """Start a model now and, from now on, at boot: both, or neither."""
        model = self.catalog.get(name)
        enabled = (await self._systemd.refresh(model.unit)).unit_file_state == "enabled"
        return await self._start_and_enable(model, caller, enabled=enabled)

    async def _start_and_enable(self, model: Model, caller: Caller, *, enabled: bool) -> Job:
        """`enabled`: it was, before."""
        intent = Intent(model=model.name, kind="enable-now", details={"enabled": enabled}, actor=caller.actor)
        async with self._intents.doing(intent):
            now = (await self._systemd.refresh(model.unit)).unit_file_state == "enabled"
            warnings = [] if now else await self.enable(model.name, caller, linger=False)
            try:
                job = await self.life.start(model.name, caller)
            except CortexError:
                if not enabled:
                    await self.disable(model.name, caller)
                raise
        job.warnings += warnings
        return job

    async def disable(self, name: str, caller: Caller) -> None:
        """Start at boot no longer."""
        self.life.check_open()
        model = self.catalog.get(name)
        async with self.catalog.locked(model):
            done = self.life.event(model, "disable", "disabled", caller)
            async with self._intents.doing(Intent(model=name, kind="disable", actor=caller.actor), done):
                await self._systemd.disable_unit(model.unit)
                await self._links_read(model)
        self.on_change(name)

    async def kill(self, name: str, signal: str, whom: str, caller: Caller) -> None:
        """Send a signal to a model's processes."""
        self.life.check_open()
        model = self.catalog.get(name)
        number = parse_signal(signal)
        if whom not in ("main", "control", "all"):
            raise InvalidConfig(f"whom={whom!r}: use main, control or all")
        if not self._systemd.cached(model.unit).running:
            raise Busy(f"model {name!r} is not running; there is nothing to send a signal to")
        unit = self._systemd.cached(model.unit)
        await self.life.record_end(model, "kill", f"{signals.Signals(number).name} asked for, to {whom}", caller)
        run = unit.invocation_id
        ending = model.ending if model.ending.stops(run) else Ending(run, "kill", number)
        with bringing_to_end(model, ending):
            await self._systemd.kill_unit(model.unit, whom, number)

    async def reset_failed(self, name: str, caller: Caller) -> None:
        """Forget the failure and the count of starts."""
        self.life.check_open()
        model = self.catalog.get(name)
        done = self.life.event(model, "reset-failed", "failed state cleared", caller)
        async with self._intents.doing(Intent(model=name, kind="reset-failed", actor=caller.actor), done):
            await self._systemd.reset_failed(model.unit)
            await self._systemd.refresh(model.unit)
        self.on_change(name)

    async def check(self, name: str) -> list[Finding]:
        """What would keep a model from starting, or harm it, errors first; takes up to half a minute."""
        return await self.life.examine(name)

    async def check_health(self, name: str) -> Probe:
        """Probe now; the outcome does not count."""
        model = self.catalog.get(name)
        spec = model.spec
        if not model.endpoint:
            raise InvalidConfig(f"health.endpoint: model {name!r} has none to ask; set it with 'cortexctl set'")
        state = self.view(name).judgement.state
        unit = self._systemd.cached(model.unit)
        if unit.active_state != "active" and unit.sub_state != "start-post":
            # It has no process, or none that is a server yet: whoever answers there is not this model.
            return Probe(outcome=Outcome.NOT_RUNNING, reason=f"it is {state}")
        return await self._prober.probe(await self._observer.liveness.door.server(model), spec.health.timeout)


def parse_signal(text: str) -> int:
    """A signal's number from its name (TERM, SIGTERM) or number; InvalidConfig if it is none."""
    try:
        return int(signals.Signals(int(text)))
    except ValueError:
        name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if name not in signals.Signals.__members__:
        raise InvalidConfig(f"signal={text!r}: use a name such as TERM or KILL, or a number")
    return int(signals.Signals[name])
