"""The registered models: their settings, what follows from them, and their unit files. Configuration, not life."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from cortexd import loading, renewal
from cortexd.backends import backend_of
from cortexd.bounded import in_thread
from cortexd.checks import check_spec, secrets_warnings, warnings_of
from cortexd.definitions import Definer
from cortexd.errors import Busy, CortexError, InvalidConfig, ModelExists, NoSuchModel, StoreFailed, UnitConflict
from cortexd.events import Event, shown_settings
from cortexd.intents import UNBORN, Intents
from cortexd.limits import LIMITS
from cortexd.live import LiveLimits
from cortexd.model import ModelSpec, parse_settings, stored_settings
from cortexd.names import MAX_MODELS, check_name
from cortexd.rebuild import losses, rebuild
from cortexd.registered import Definition, Model
from cortexd.registration import Caller, fill_in
from cortexd.reread import Reread
from cortexd.scope import Scope
from cortexd.secrets import NO_SECRETS, Known, Secrets, generate
from cortexd.store import Intent, Store, StoredModel
from cortexd.systemd.protocol import Systemd
from cortexd.unitfiles import UnitFiles
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import Tools

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Catalog:
    """All models by name. Changes go: check everything → intent → unit file → reload → database, which makes them true; a failure
    before that undoes what was done, in this daemon or in the next one."""

    def __init__(self, scope: Scope, tools: Tools, store: Store, systemd: Systemd, intents: Intents) -> None:
        self._scope, self._store, self._systemd, self._intents = scope, store, systemd, intents
        self._definer = Definer(scope, tools)
        self.units = UnitFiles(scope, tools)
        self.live = LiveLimits(scope, systemd, intents)
        self.secrets = Secrets(scope.secrets)
        self.models: dict[str, Model] = {}
        self._lasting: list[str] = []
        """What was found at the start, and stays true."""
        self._unusable: dict[str, str] = {}
        """Why some cannot be registered, by name: until they are."""
        self._of_nobody: list[tuple[str, str]] = []
        """What lies around of models that are not registered, by name."""
        self._template_problem = ""
        self.reread = Reread(systemd)
        self.on_change: Callable[[str], None] = lambda name: None
        """Called with a model's name when its warnings have changed."""
        self.on_warnings: Callable[[], None] = lambda: None
        """Called when `warnings` have changed."""
        self._choosing = asyncio.Lock()
        """Held from the choice of a port until it is another model's to avoid."""

    @property
    def warnings(self) -> list[str]:
        """What is wrong beside the models: units without one, rows that cannot be read. As of the last `look_around`."""
        of_others = [told for name, told in [*self._unusable.items(), *self._of_nobody] if name not in self.models]
        return [*self._lasting, *of_others, *filter(None, (self._template_problem, self.reread.warning))]

    async def look_at_units(self) -> None:
        """See which unit files somebody changed: cheap, also for a thousand models."""
        changed = await asyncio.to_thread(self.units.changed, list(self.models.values()))
        if changed:
            self._refresh_warnings(changed)

    async def look_around(self) -> None:
        """See what lies around of no model: cheap, too."""
        if self._choosing.locked():
            return  # what a registration has written so far is somebody's
        before = self.warnings
        await asyncio.to_thread(self._look_around, {*self.models})
        if self.warnings != before:
            self.on_warnings()

    def _look_around(self, registered: Collection[str]) -> None:
        """Blocking."""
        # Of those that cannot be read as they are there may still be need.
        secrets = ((name, self.secrets.path(name)) for name in self.secrets.models({*registered, *self._unusable}))
        said = [(name, f"{path} has secrets, but no model {name!r} is registered; delete it") for name, path in secrets]
        self._of_nobody = [*said, *self.units.of_nobody(registered).items()]
        self._template_problem = self.units.template_problem()

    def get(self, name: str) -> Model:
        """The model, or NoSuchModel."""
        if name not in self.models:
            raise NoSuchModel(name)
        return self.models[name]

    def count(self, event: Event) -> None:
        """Something has happened to a model: it counts towards its budget from now on."""
        if model := self.models.get(event.model):
            failed = model.budget.failed
            model.budget.add(event)
            if model.budget.failed != failed:
                self.on_change(model.name)

    @asynccontextmanager
    async def locked(self, model: Model) -> AsyncIterator[None]:
        """Have a model for one use-case alone; NoSuchModel where it was unregistered while we waited for it."""
        async with model.lock:
            if self.models.get(model.name) is not model:
                raise NoSuchModel(model.name)
            yield

    async def renew(self, model: Model) -> None:
        """Take over what its backend's file says now, and its unit with it: what a run is of has to be known. Raises
        InvalidConfig where the file cannot be used."""
        try:
            new = await _look(renewal.renewed, model, self._definer.again, self._scope)
        except InvalidConfig as e:
            model.backend_problem = str(e)
            self._refresh_warnings()
            raise
        changed = new.text != model.definition.text
        model.definition, model.backend_problem, model.backend_changed = new, "", False
        if changed:
            await self._write_unit(model)

    def _refresh_warnings(self, models: Iterable[Model] | None = None) -> None:
        """Say anew what deserves a warning, of these models (None: of all; a port in common concerns more than the one that
        was changed)."""
        chosen = [*(self.models.values() if models is None else models)]
        by_port: dict[int, list[ModelSpec]] = {model.spec.port: [] for model in chosen}
        for spec in self._specs():
            if spec.port in by_port:
                by_port[spec.port].append(spec)
        for model in chosen:
            if self.models.get(model.name) is not model:
                continue  # unregistered while somebody looked at it
            found = list(
                warnings_of(model.spec, model.definition.backend, by_port[model.spec.port], model.definition.explicit)
            )
            found += secrets_warnings(model.spec, model.plan.api_key, model.definition.secrets.names)
            if model.secrets_problem:
                found.append(model.secrets_problem)
            if model.sandbox_problem:
                found.append(model.sandbox_problem)
            if model.backend_problem:
                found.append(
                    f"{model.backend_problem}; until then it goes on as it is, and cannot be started or changed"
                )
            found += self.drift(model)
            if model.warnings != tuple(found):
                model.warnings = tuple(found)
                self.on_change(model.name)

    def drift(self, model: Model) -> list[str]:
        """The warning that its unit file is not ours any more, where it is not."""
        missing = model.file_state is FileState.MISSING
        return [_drifted(model, self.units.path(model.name))] if model.drifted or missing else []

    async def check(self, model: Model) -> None:
        """Look again whether a model can be run, before a start: files change and go away. Raises InvalidConfig,
        StoreFailed."""
        await self.renew(model)
        await self.see_secrets(model)
        if model.secrets_problem:  # the server may be open to everybody without its key
            raise StoreFailed(model.secrets_problem)
        await _look(self._check, model.spec)
        new = await _look(self._definer.again, model)  # links may lead elsewhere than they did
        if new.text != model.definition.text:
            model.definition = new
            await self._write_unit(model)

    def _check(self, spec: ModelSpec) -> None:
        check_spec(spec, backend_of(spec.backend, self._scope), self._scope)
        if not os.access(spec.exec, os.X_OK):
            raise InvalidConfig(f"exec={spec.exec!r}: is no executable file any more; give another one with exec=")

    def sandbox_seen(self, model: Model) -> None:
        """Its `sandbox_problem` may have changed."""
        self._refresh_warnings([model])

    async def redefine(self) -> None:
        """Make all definitions and unit files anew: what they depend on beside settings has changed. Takes no model's lock:
        who waits for this may hold one."""
        changed = []
        for model in list(self.models.values()):
            old = model.definition
            if model.backend_problem:
                continue
            try:
                new = await _look(self._definer.again, model)
            except CortexError as e:
                log.warning("%s: its unit cannot be made anew: %s", model.name, e)
                continue
            if model.definition is old and new.text != old.text:  # else somebody changed its settings meanwhile
                model.definition = new
                changed.append(model)
        for model in changed:
            try:
                await asyncio.to_thread(self.units.sync, model)
            except OSError as e:
                log.warning("%s cannot be written: %s", self.units.path(model.name), e.strerror)
            self.on_change(model.name)
        if changed:
            await self._systemd.reload()
        self._refresh_warnings()

    async def look(self, models: Sequence[Model]) -> None:
        """See whether somebody changed these models' unit files meanwhile, and backend files."""
        for model in models:
            await asyncio.to_thread(self.units.inspect, model)
        changed = await renewal.see(self.models.values(), self._definer.again, self._scope)
        self._refresh_warnings([*models, *changed])
        for model in changed:
            self.on_change(model.name)

    async def load(self) -> None:
        """Read the database, write unit files that are missing or outdated, and report what belongs to no model."""
        if self._store.new:
            self._unusable |= await rebuild(self._store, self._scope.unit_folder)
        self._lasting += await losses(self._store, time.time())
        rows = await self._store.models()
        found = await loading.load(rows, self._read)
        for row, each in zip(rows, found, strict=True):
            if isinstance(each, str):
                self._unusable[row.name] = each
            else:
                self.models[each.name] = each
        unborn = {i.model for i in await self._store.unfinished() if i.kind in UNBORN} - {row.name for row in rows}
        removed_units = 0
        try:
            removed_units = await asyncio.to_thread(self._clear_away, unborn)
        except (CortexError, OSError) as e:
            self._lasting.append(f"what a killed cortexd has left of models that are not registered stays: {e}")
        changed = await asyncio.to_thread(self.units.sync_all, self.models, self._lasting)
        if changed:
            log.info("wrote %d missing or outdated unit files", changed)
        removed, kept = await self.live.clean(await self._store.unfinished())
        self._lasting += kept
        if changed or removed or removed_units or any(self._unread(model) for model in self.models.values()):
            await self.reread.now()
        await self.live.settle({m.unit: m.spec for m in self.models.values() if self._systemd.cached(m.unit).running})
        self._refresh_warnings()
        await self.look_around()
        for warning in self.warnings:
            log.warning("%s", warning)

    def _read(self, row: StoredModel, answers: bool) -> Model | str:
        """A row as a model, or why it cannot be one; blocking. Unless its file system `answers`, it is what its unit file
        says."""
        try:
            if row.settings is None:
                raise InvalidConfig("its settings are no JSON object")
            settings = stored_settings(row.settings)
            known, problem = self._secrets_of(check_name(row.name))
            try:
                if not answers:
                    raise InvalidConfig(renewal.NO_ANSWER)
                definition, broken = self._definer.define(row.name, settings, known, check=False), ""
            except InvalidConfig as e:
                definition, broken = renewal.stand_in(row.name, settings, known, self._scope), str(e)
            return Model(row.name, definition, secrets_problem=problem, backend_problem=broken)
        except (CortexError, ValueError) as e:
            return f"model {row.name!r} in the database cannot be read and is left alone, until it is registered again: {e}"

    def _unread(self, model: Model) -> bool:
        """Whether systemd has not read its unit file as it is: a daemon may have been killed before it asked for that."""
        unit = self._systemd.cached(model.unit)
        return unit.need_daemon_reload or not unit.unit_file_state

    async def ensure_unit(self, model: Model) -> None:
        """Make sure that systemd has the unit as it should be, or a file of the user's in its place."""
        with suppress(InvalidConfig):  # who must not go on with the old one asks `renew` before
            await self.renew(model)
        await self._write_unit(model)

    def check_loaded(self, model: Model) -> None:
        """Raise UnitConflict where something that is not ours lies in the place of the unit file, and systemd cannot use it."""
        found = self._systemd.cached(model.unit).load_state
        if model.file_state is FileState.FOREIGN and found not in ("loaded", "masked"):
            raise UnitConflict(
                f"{self.units.path(model.name)} was not written by cortexd, and systemd cannot load it ({found}); "
                f"'cortexctl repair {model.name}' puts it aside and writes the unit"
            )

    async def _write_unit(self, model: Model) -> None:
        await self._write_units([model])
        self._refresh_warnings()

    async def _write_units(self, models: Sequence[Model]) -> None:
        """Have systemd know these units as they should be. Raises UnitConflict where one cannot be written."""
        try:
            changed = await asyncio.to_thread(self.units.sync_each, models)
        except OSError as e:
            raise UnitConflict(f"{e.filename} cannot be written: {e.strerror}; check the disk and the folder") from e
        if changed or any(self._systemd.cached(model.unit).need_daemon_reload for model in models):
            await self._systemd.reload()

    async def add(
        self, wanted: Mapping[str, Mapping[str, object]], caller: Caller, *, api_key: bool = False
    ) -> list[Model]:
        """Register models of these names and settings, each with a new key that its clients have to give where `api_key` says
        so: all of it or nothing, with one reload. Raises InvalidName, InvalidConfig, ModelExists, UnitConflict, StoreFailed."""
        async with self._choosing:
            if len(self.models) + len(wanted) > MAX_MODELS:
                raise Busy(f"{MAX_MODELS} models are registered, and no more are possible; unregister some")
            models = await self._new(wanted, caller, api_key=api_key)
            await self._refuse_foreign_units(models)
            events = [
                Event(
                    model=model.name,
                    kind="registered",
                    message=f"registered with {model.spec.backend}",
                    actor=caller.actor,
                    details=shown_settings(wanted[model.name]),
                )
                for model in models
            ]
            await asyncio.to_thread(self._forget_secrets, models)  # of models of these names which did not go in peace
            intents = [Intent(model=model.name, kind="register", actor=caller.actor) for model in models]
            async with self._intents.committing(intents) as numbers:
                try:
                    if api_key:  # a model that should ask for a key must never be there without one
                        await asyncio.to_thread(self._give_keys, models)
                    await self._write_units(models)
                    explicit = {model.name: model.definition.explicit for model in models}
                    await self._store.save_models(explicit, events, numbers)
                except BaseException:
                    await self._take_back([model.name for model in models])
                    raise
            self.models.update((model.name, model) for model in models)
            ports = {model.spec.port for model in models}
            self._refresh_warnings(model for model in self.models.values() if model.spec.port in ports)
            return models

    async def _new(self, wanted: Mapping[str, Mapping[str, object]], caller: Caller, *, api_key: bool) -> list[Model]:
        """Models that could be, checked. Nothing of them is anywhere yet."""
        models: list[Model] = []
        specs = self._specs()
        for name, raw in wanted.items():
            try:
                model = await _look(self._define_new, name, raw, caller, specs)
                if api_key and not model.plan.api_key:
                    raise InvalidConfig(
                        f"api_key='auto': {model.spec.backend} asks its clients for no key; leave it out"
                    )
            except CortexError as e:
                if len(wanted) > 1:
                    e.args = (f"{name}: {e}",)
                raise
            models.append(model)
            specs.append(model.spec)
        return models

    def _define_new(self, name: str, raw: Mapping[str, object], caller: Caller, others: Sequence[ModelSpec]) -> Model:
        """Blocking."""
        check_name(name)
        if name in self.models:
            raise ModelExists(f"model {name!r} is registered already; change it with 'cortexctl set {name} KEY=VALUE'")
        explicit = fill_in(parse_settings(raw), {}, caller, self._scope, others)
        model = Model(name, self._definer.define(name, explicit))
        files.check_writable(self.units.path(name))
        return model

    def _forget_secrets(self, models: Sequence[Model]) -> None:
        for model in models:
            self.secrets.forget(model.name)

    def _give_keys(self, models: Sequence[Model]) -> None:
        """Blocking. Raises StoreFailed."""
        for model in models:
            self.secrets.set(model.name, model.plan.api_key, generate())
            known = self.secrets.known(model.name)
            model.definition = self._definer.define(model.name, model.definition.explicit, known)

    async def _take_back(self, names: Sequence[str]) -> None:
        """Undo registrations that did not come as far as the database."""
        try:
            await asyncio.to_thread(self._clear_away, names)
            await self._systemd.reload()
        except (CortexError, OSError) as e:
            log.warning("what was to be registered has left something behind: %s", e)

    def _clear_away(self, names: Iterable[str]) -> int:
        """Delete what lies around of models that are not registered; returns how many unit files. Blocking; raises OSError,
        StoreFailed."""
        removed = 0
        for name in names:
            removed += self.units.remove(name)
            self.secrets.forget(name)
        return removed

    async def _refuse_foreign_units(self, models: Sequence[Model]) -> None:
        there = await self._systemd.existing([model.unit for model in models])
        for model in models:
            if model.unit in there:
                await self._refuse_foreign_unit(model)

    async def _refuse_foreign_unit(self, model: Model) -> None:
        unit = await self._systemd.refresh(model.unit)
        if unit.load_state not in ("not-found", "error") and Path(unit.fragment_path) != self.units.path(model.name):
            where = unit.fragment_path or "a transient unit"
            raise UnitConflict(f"a unit {model.unit} exists already ({where}); choose another name")

    def _specs(self) -> list[ModelSpec]:
        return [m.spec for m in self.models.values()]

    async def change(self, model: Model, raw: Mapping[str, object], caller: Caller) -> list[str]:
        """Change settings: all of them or none; limits of a unit that runs at once. Returns which do not reach it, a sentence
        each."""
        parsed = parse_settings(raw)
        if not parsed:
            raise InvalidConfig("no setting was given; use KEY=VALUE")
        old = model.definition
        async with AsyncExitStack() as until_done:
            async with self._choosing:
                others = [spec for spec in self._specs() if spec.name != model.name]
                explicit = await _look(fill_in, parsed, old.explicit, caller, self._scope, others)
                new = await _look(self._definer.define, model.name, explicit, old.secrets)
                if new.text != old.text:
                    await asyncio.to_thread(files.check_writable, self.units.path(model.name))
                intent = Intent(model=model.name, kind="set", actor=caller.actor)
                numbers = await until_done.enter_async_context(self._intents.committing([intent]))
                model.definition = new
            shown = shown_settings(raw)
            message = "changed " + ", ".join(f"{name}={value}" for name, value in shown.items())
            event = Event(model=model.name, kind="set", message=message[:1000], actor=caller.actor, details=shown)
            limited = any(limit.setting in parsed for limit in LIMITS)
            told = []
            try:
                await self.ensure_unit(model)
                if limited and self._systemd.cached(model.unit).running:
                    told = await self._limit(model, old)
                await self._store.save_models({model.name: explicit}, [event], numbers)
            except BaseException:
                model.definition = old
                with suppress(OSError, CortexError):
                    if await asyncio.to_thread(self.units.sync, model):
                        await self._systemd.reload()
                if limited:
                    await self.live.undo(model.unit, old.spec.limits)
                raise
        return told

    async def _limit(self, model: Model, old: Definition) -> list[str]:
        """Bring its limits to a model that runs. Returns what does not follow at once, a sentence each."""
        told = await self.live.apply(model.unit, model.spec.limits)
        sized = (old.plan.argv, old.plan.environment) != (model.plan.argv, model.plan.environment)
        if sized and not model.outdated:
            told.append(
                f"the limits are in force; what {model.spec.backend} sizes by them (its caches) follows at the next start"
            )
        return told

    async def remove(self, model: Model, actor: str) -> list[str]:
        """Forget a stopped model and delete its unit file; a file that was edited by hand is kept, and named. systemd is
        the caller's to tell: all of this is true even if it does not answer. Returns what was kept, a sentence each."""
        kept = []
        if await asyncio.to_thread(files.inspect, self.units.path(model.name)) in (
            FileState.CURRENT,
            FileState.OUTDATED,
        ):
            try:
                await asyncio.to_thread(files.remove, self.units.path(model.name))
            except OSError as e:
                raise StoreFailed(
                    f"{self.units.path(model.name)} cannot be deleted: {e.strerror}; delete it and try again"
                ) from e
        elif self.units.path(model.name).exists():
            kept.append(
                f"{self.units.path(model.name)} was not as cortexd wrote it and is kept; delete it if it is not needed"
            )
        if (drop_ins := Path(f"{self.units.path(model.name)}.d")).exists():
            kept.append(f"{drop_ins} is kept, and would apply to the next model of that name")
        event = Event(model=model.name, kind="unregistered", message="; ".join(["unregistered", *kept]), actor=actor)
        try:
            await self._store.delete_model(model.name, event)
        except BaseException:
            with suppress(OSError):
                await asyncio.to_thread(self.units.sync, model)
            raise
        del self.models[model.name]
        try:
            await asyncio.to_thread(self.secrets.forget, model.name)
        except StoreFailed as e:
            kept.append(str(e))
        self._refresh_warnings()
        return kept

    def _secrets_of(self, name: str) -> tuple[Known, str]:
        """A model's secrets, or none and what is wrong with them."""
        try:
            return self.secrets.known(name), ""
        except StoreFailed as e:
            return NO_SECRETS, str(e)

    async def see_secrets(self, model: Model) -> None:
        """Take over what its file of secrets says now."""
        old = model.definition
        model.definition, model.secrets_problem = await asyncio.to_thread(self._with_secrets, model)
        if model.definition.text != old.text:  # a name that is kept from the server otherwise
            await self.ensure_unit(model)
        self._refresh_warnings()

    def _with_secrets(self, model: Model) -> tuple[Definition, str]:
        old = model.definition
        known, problem = self._secrets_of(model.name)
        if known == old.secrets:
            return old, problem
        try:
            if backend_of(old.spec.backend, self._scope) is old.backend:
                return self._definer.define(model.name, old.explicit, known, check=False), problem
        except InvalidConfig:
            pass  # its backend's file is broken
        return replace(old, secrets=known), problem


def _drifted(model: Model, path: Path) -> str:
    what = "is missing; the next start writes it again"
    if model.drifted:
        what = "is not what cortexd wrote and is kept; settings do not reach it"
    return f"{path} {what}: 'cortexctl repair {model.name}' shows the difference, and writes it now"


_LOOK_SECONDS = 10.0


async def _look(function: Callable[..., _T], *arguments: object) -> _T:
    """Run what looks at a caller's files in a thread, and not for ever: a file system may not answer."""
    try:
        return await in_thread(_LOOK_SECONDS, partial(function, *arguments))
    except TimeoutError:
        raise InvalidConfig(
            f"path: its file system does not answer within {_LOOK_SECONDS:g} s; check the mount"
        ) from None
