"""The registered models: their settings, what follows from them, and their unit files. Configuration, not life."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from cortexd import loading, renewal
from cortexd.backends import backend_of
from cortexd.bounded import in_thread
from cortexd.checks import check_spec, secrets_warnings, warnings_of
from cortexd.definitions import Definer
from cortexd.errors import CortexError, InvalidConfig, ModelExists, NoSuchModel, StoreFailed, UnitConflict
from cortexd.events import Event, shown_settings
from cortexd.kinds import Value
from cortexd.limits import LIMITS
from cortexd.live import LiveLimits
from cortexd.model import ModelSpec, parse_settings, stored_settings
from cortexd.names import check_name
from cortexd.rebuild import rebuild
from cortexd.registered import Definition, Model
from cortexd.registration import Caller, fill_in
from cortexd.scope import Scope
from cortexd.secrets import NO_SECRETS, Known, Secrets, generate
from cortexd.store import Store, StoredModel
from cortexd.systemd.protocol import Systemd
from cortexd.unitfiles import UnitFiles
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import Tools

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Catalog:
    """All models by name. Changes go: check everything → database → unit file → reload; a failure undoes what was done."""

    def __init__(self, scope: Scope, tools: Tools, store: Store, systemd: Systemd) -> None:
        self._scope, self._store, self._systemd = scope, store, systemd
        self._definer = Definer(scope, tools)
        self._units = UnitFiles(scope, tools)
        self.live = LiveLimits(scope, systemd)
        self.secrets = Secrets(scope.secrets)
        self.models: dict[str, Model] = {}
        self.warnings: list[str] = []
        """What is wrong beside the models: units without one, rows that cannot be read."""
        self.on_change: Callable[[str], None] = lambda name: None
        """Called with a model's name when its warnings have changed."""
        self._choosing = asyncio.Lock()
        """Held from the choice of a port until it is another model's to avoid."""

    def get(self, name: str) -> Model:
        """The model, or NoSuchModel."""
        if name not in self.models:
            raise NoSuchModel(name)
        return self.models[name]

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

    def _define_with_key(self, name: str, explicit: Mapping[str, Value], variable: str) -> Definition:
        """A definition with a new API key; blocking. Raises StoreFailed."""
        self.secrets.set(name, variable, generate())
        return self._definer.define(name, explicit, self.secrets.known(name))

    def _refresh_warnings(self) -> None:
        """Say anew what deserves a warning: a port in common concerns more than the model that was changed."""
        by_port: dict[int, list[ModelSpec]] = {}
        for spec in self._specs():
            by_port.setdefault(spec.port, []).append(spec)
        for model in self.models.values():
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
            if model.file_state in (FileState.EDITED, FileState.FOREIGN):
                found.append(
                    f"{self._units.path(model.name)} is not what cortexd wrote and is kept; settings do not reach it until it is deleted"
                )
            elif model.file_state is FileState.MISSING:
                found.append(f"{self._units.path(model.name)} is missing; the next start writes it again")
            if model.warnings != tuple(found):
                model.warnings = tuple(found)
                self.on_change(model.name)

    async def check(self, model: Model) -> None:
        """Look again whether a model can be run, before a start: files change and go away. Raises InvalidConfig,
        StoreFailed."""
        await self.renew(model)
        await self.see_secrets(model)
        if model.secrets_problem:  # the server may be open to everybody without its key
            raise StoreFailed(model.secrets_problem)
        await _look(self._check, model.spec)

    def _check(self, spec: ModelSpec) -> None:
        check_spec(spec, backend_of(spec.backend, self._scope), self._scope)
        if not os.access(spec.exec, os.X_OK):
            raise InvalidConfig(f"exec={spec.exec!r}: is no executable file any more; give another one with exec=")

    def sandboxes_seen(self) -> None:
        """Models' `sandbox_problem` may have changed."""
        self._refresh_warnings()

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
                await asyncio.to_thread(self._units.sync, model)
            except OSError as e:
                log.warning("%s cannot be written: %s", self._units.path(model.name), e.strerror)
            self.on_change(model.name)
        if changed:
            await self._systemd.reload()
        self._refresh_warnings()

    async def look(self, models: Sequence[Model]) -> None:
        """See whether somebody changed these models' unit files meanwhile, and backend files."""
        for model in models:
            model.file_state = await asyncio.to_thread(
                files.inspect, self._units.path(model.name), model.definition.text
            )
        for name in await renewal.see(self.models.values(), self._definer.again, self._scope):
            self.on_change(name)
        self._refresh_warnings()

    async def load(self) -> None:
        """Read the database, write unit files that are missing or outdated, and report what belongs to no model."""
        if self._store.new:
            self.warnings += await rebuild(self._store, self._scope.unit_folder)
        rows = await self._store.models()
        for found in await loading.load(rows, self._read):
            if isinstance(found, str):
                self.warnings.append(found)
            else:
                self.models[found.name] = found
        for name in set(self.secrets.models()) - {row.name for row in rows}:
            self.warnings.append(
                f"{self.secrets.path(name)} has secrets, but no model {name!r} is registered; delete it"
            )
        changed = await asyncio.to_thread(self._units.sync_all, self.models, self.warnings)
        if changed:
            log.info("wrote %d missing or outdated unit files", changed)
            await self._systemd.reload()
        await self._settle_limits()
        self._refresh_warnings()
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
            return f"model {row.name!r} in the database cannot be read and is left alone: {e}"

    async def _settle_limits(self) -> None:
        """Finish the changes of limits in which a daemon was killed."""
        models = self.models.values()
        self.warnings += await self.live.clean({model.unit: model.spec.limits for model in models})
        await self.live.settle({m.unit: m.spec for m in models if self._systemd.cached(m.unit).running})

    async def ensure_unit(self, model: Model) -> None:
        """Make sure that systemd has the unit as it should be, or a file of the user's in its place."""
        with suppress(InvalidConfig):  # who must not go on with the old one asks `renew` before
            await self.renew(model)
        await self._write_unit(model)

    async def _write_unit(self, model: Model) -> None:
        try:
            changed = await asyncio.to_thread(self._units.sync, model)
        except OSError as e:
            raise UnitConflict(
                f"{self._units.path(model.name)} cannot be written: {e.strerror}; check the disk and the folder"
            ) from e
        if changed or self._systemd.cached(model.unit).need_daemon_reload:
            await self._systemd.reload()
        self._refresh_warnings()

    async def add(self, name: str, raw: Mapping[str, object], caller: Caller, *, api_key: bool = False) -> Model:
        """Register a model, with a new key that its clients have to give where `api_key` says so: all of it or nothing.
        Raises InvalidName, InvalidConfig, ModelExists, UnitConflict, StoreFailed."""
        check_name(name)
        async with self._choosing:
            if name in self.models:
                raise ModelExists(
                    f"model {name!r} is registered already; change it with 'cortexctl set {name} KEY=VALUE'"
                )
            explicit = await _look(fill_in, parse_settings(raw), {}, caller, self._scope, self._specs())
            model = Model(name, await _look(self._definer.define, name, explicit))
            await asyncio.to_thread(files.check_writable, self._units.path(model.name))
            await self._refuse_foreign_unit(model)
            if api_key and not model.plan.api_key:
                raise InvalidConfig(f"api_key='auto': {model.spec.backend} asks its clients for no key; leave it out")
            await asyncio.to_thread(self.secrets.forget, name)  # of a model of that name which did not go in peace
            message = f"registered with {model.spec.backend}"
            event = Event(
                model=name, kind="registered", message=message, actor=caller.actor, details=shown_settings(raw)
            )
            try:
                if api_key:  # first of all: a model that should ask for a key must never be there without one
                    variable = model.plan.api_key
                    model.definition = await asyncio.to_thread(self._define_with_key, name, explicit, variable)
                await self._store.save_model(name, explicit, event)
            except BaseException:
                await asyncio.to_thread(self.secrets.forget, name)
                raise
            try:
                await self.ensure_unit(model)
            except BaseException as e:
                with suppress(OSError):
                    await asyncio.to_thread(files.remove, self._units.path(model.name))
                undone = Event(model=name, kind="register-failed", message=str(e) or "interrupted", actor=caller.actor)
                await self._store.delete_model(name, undone)
                await asyncio.to_thread(self.secrets.forget, name)
                raise
            self.models[name] = model
            self._refresh_warnings()
            return model

    async def _refuse_foreign_unit(self, model: Model) -> None:
        unit = await self._systemd.refresh(model.unit)
        if unit.load_state not in ("not-found", "error") and Path(unit.fragment_path) != self._units.path(model.name):
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
        async with self._choosing:
            others = [spec for spec in self._specs() if spec.name != model.name]
            explicit = await _look(fill_in, parsed, old.explicit, caller, self._scope, others)
            new = await _look(self._definer.define, model.name, explicit, old.secrets)
            if new.text != old.text:
                await asyncio.to_thread(files.check_writable, self._units.path(model.name))
            shown = shown_settings(raw)
            message = "changed " + ", ".join(f"{name}={value}" for name, value in shown.items())
            event = Event(model=model.name, kind="set", message=message[:1000], actor=caller.actor, details=shown)
            await self._store.save_model(model.name, explicit, event)
            model.definition = new
        limited = any(limit.setting in parsed for limit in LIMITS)
        try:
            await self.ensure_unit(model)
            if limited and self._systemd.cached(model.unit).running:
                return await self._limit(model, old)
            return []
        except BaseException as e:
            model.definition = old
            with suppress(OSError):
                await asyncio.to_thread(self._units.sync, model)
            undone = Event(model=model.name, kind="set-failed", message=str(e) or "interrupted", actor=caller.actor)
            await self._store.save_model(model.name, old.explicit, undone)
            if limited:
                await self.live.undo(model.unit, old.spec.limits, new.spec.limits)
            raise

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
        if await asyncio.to_thread(files.inspect, self._units.path(model.name)) in (
            FileState.CURRENT,
            FileState.OUTDATED,
        ):
            try:
                await asyncio.to_thread(files.remove, self._units.path(model.name))
            except OSError as e:
                raise StoreFailed(
                    f"{self._units.path(model.name)} cannot be deleted: {e.strerror}; delete it and try again"
                ) from e
        elif self._units.path(model.name).exists():
            kept.append(
                f"{self._units.path(model.name)} was not as cortexd wrote it and is kept; delete it if it is not needed"
            )
        if (drop_ins := Path(f"{self._units.path(model.name)}.d")).exists():
            kept.append(f"{drop_ins} is kept, and would apply to the next model of that name")
        event = Event(model=model.name, kind="unregistered", message="; ".join(["unregistered", *kept]), actor=actor)
        try:
            await self._store.delete_model(model.name, event)
        except BaseException:
            with suppress(OSError):
                await asyncio.to_thread(self._units.sync, model)
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


_LOOK_SECONDS = 10.0


async def _look(function: Callable[..., _T], *arguments: object) -> _T:
    """Run what looks at a caller's files in a thread, and not for ever: a file system may not answer."""
    try:
        return await in_thread(_LOOK_SECONDS, partial(function, *arguments))
    except TimeoutError:
        raise InvalidConfig(
            f"path: its file system does not answer within {_LOOK_SECONDS:g} s; check the mount"
        ) from None
