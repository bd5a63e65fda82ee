"""The registered models: their settings, what follows from them, and their unit files. Configuration, not life."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from cortexd.backends import backend_of
from cortexd.checks import check_spec, warnings_of
from cortexd.errors import CortexError, InvalidConfig, ModelExists, NoSuchModel, StoreFailed, UnitConflict
from cortexd.events import Event, shown_settings
from cortexd.kinds import Value
from cortexd.model import DEFAULT_BACKEND, ModelSpec, build_spec, parse_settings
from cortexd.names import check_name, model_name
from cortexd.registered import Definition, Model
from cortexd.registration import Caller, fill_in
from cortexd.scope import Scope
from cortexd.store import Store
from cortexd.systemd.protocol import Systemd
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import FOLDER_TEMPLATE, Tools, render_folder_template, render_unit

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Catalog:
    """All models by name. Changes go: check everything → database → unit file → reload; a failure undoes what was done."""

    def __init__(self, scope: Scope, tools: Tools, store: Store, systemd: Systemd) -> None:
        self._scope, self._tools, self._store, self._systemd = scope, tools, store, systemd
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

    def _path(self, model: Model) -> Path:
        return self._scope.unit_folder / model.unit

    def _define(self, name: str, explicit: Mapping[str, Value], *, check: bool = True) -> Definition:
        backend = backend_of(str(explicit.get("backend", DEFAULT_BACKEND)), self._scope)
        gpus = explicit.get("gpus", ("0",))
        spec = build_spec(name, explicit, backend.defaults(len(gpus) if isinstance(gpus, tuple) else 0))
        if check:
            check_spec(spec, backend, self._scope)
        plan = backend.plan(spec, self._scope)
        text = files.with_marker(render_unit(spec, plan, self._scope, self._tools))
        return Definition(explicit, spec, backend, plan, text)

    def _refresh_warnings(self) -> None:
        """Say anew what deserves a warning: a port in common concerns more than the model that was changed."""
        by_port: dict[int, list[ModelSpec]] = {}
        for spec in self._specs():
            by_port.setdefault(spec.port, []).append(spec)
        for model in self.models.values():
            found = list(
                warnings_of(model.spec, model.definition.backend, by_port[model.spec.port], model.definition.explicit)
            )
            if model.file_state in (FileState.EDITED, FileState.FOREIGN):
                found.append(
                    f"{self._path(model)} is not what cortexd wrote and is kept; settings do not reach it until it is deleted"
                )
            elif model.file_state is FileState.MISSING:
                found.append(f"{self._path(model)} is missing; the next start writes it again")
            if model.warnings != tuple(found):
                model.warnings = tuple(found)
                self.on_change(model.name)

    async def check(self, model: Model) -> None:
        """Look again whether a model can be run, before a start: files go away. Raises InvalidConfig."""
        await _look(self._check, model.spec)

    def _check(self, spec: ModelSpec) -> None:
        check_spec(spec, backend_of(spec.backend, self._scope), self._scope)
        if not os.access(spec.exec, os.X_OK):
            raise InvalidConfig(f"exec={spec.exec!r}: is no executable file any more; give another one with exec=")

    async def look(self, models: Sequence[Model]) -> None:
        """See whether somebody changed unit files meanwhile."""
        for model in models:
            model.file_state = await asyncio.to_thread(files.inspect, self._path(model), model.definition.text)
        if models:
            self._refresh_warnings()

    async def load(self) -> None:
        """Read the database, write unit files that are missing or outdated, and report what belongs to no model."""
        for row in await self._store.models():
            try:
                if row.settings is None:
                    raise InvalidConfig("its settings are no JSON object")
                settings = {k: v for k, v in parse_settings(row.settings).items() if v is not None}
                model = Model(check_name(row.name), self._define(row.name, settings, check=False))
            except (CortexError, ValueError) as e:
                self.warnings.append(f"model {row.name!r} in the database cannot be read and is left alone: {e}")
                continue
            self.models[model.name] = model
        changed = await asyncio.to_thread(self._sync_files)
        if changed:
            log.info("wrote %d missing or outdated unit files", changed)
            await self._systemd.reload()
        self._refresh_warnings()
        for warning in self.warnings:
            log.warning("%s", warning)

    def _sync_files(self) -> int:
        """Write what is missing or outdated; blocking. Returns how many were written."""
        changed = 0
        for model in self.models.values():
            try:
                model.rewritten = self._sync_file(model)
                changed += model.rewritten
            except OSError as e:
                self.warnings.append(f"{self._path(model)} cannot be written: {e.strerror}")
        for rest in self._scope.unit_folder.glob(".cortex-*.service.*"):
            with suppress(OSError):
                rest.unlink()  # half written by a daemon that was killed
        for path in sorted(self._scope.unit_folder.glob("cortex-*.service")):
            name = model_name(path.name)
            if name and name not in self.models and files.inspect(path) in (FileState.CURRENT, FileState.EDITED):
                self.warnings.append(
                    f"{path} was written by cortexd, but no model {name!r} is registered; register it again, or delete the file"
                )
        return changed

    def _sync_file(self, model: Model) -> bool:
        """Write the model's unit file if it is missing or outdated; blocking. Raises OSError."""
        changed = self._sync_template() if model.plan.writes or model.spec.hardening.read_write_paths else False
        path = self._path(model)
        model.file_state = files.inspect(path, model.definition.text)
        if model.file_state in (FileState.MISSING, FileState.OUTDATED):
            files.write(path, model.definition.text)
            model.file_state = FileState.CURRENT
            changed = True
        return changed

    def _sync_template(self) -> bool:
        path, text = self._scope.unit_folder / FOLDER_TEMPLATE, files.with_marker(render_folder_template(self._tools))
        if files.inspect(path, text) not in (FileState.MISSING, FileState.OUTDATED):
            return False
        files.write(path, text)
        return True

    async def ensure_unit(self, model: Model) -> None:
        """Make sure that systemd has the unit as it should be, or a file of the user's in its place."""
        try:
            changed = await asyncio.to_thread(self._sync_file, model)
        except OSError as e:
            raise UnitConflict(
                f"{self._path(model)} cannot be written: {e.strerror}; check the disk and the folder"
            ) from e
        if changed or self._systemd.cached(model.unit).need_daemon_reload:
            await self._systemd.reload()
        self._refresh_warnings()

    async def add(self, name: str, raw: Mapping[str, object], caller: Caller) -> Model:
        """Register a model: all of it or nothing. Raises InvalidName, InvalidConfig, ModelExists, UnitConflict."""
        check_name(name)
        async with self._choosing:
            if name in self.models:
                raise ModelExists(
                    f"model {name!r} is registered already; change it with 'cortexctl set {name} KEY=VALUE'"
                )
            explicit = await _look(fill_in, parse_settings(raw), {}, caller, self._scope, self._specs())
            model = Model(name, await _look(self._define, name, explicit))
            await asyncio.to_thread(files.check_writable, self._path(model))
            await self._refuse_foreign_unit(model)
            message = f"registered with {model.spec.backend}"
            event = Event(
                model=name, kind="registered", message=message, actor=caller.actor, details=shown_settings(raw)
            )
            await self._store.save_model(name, explicit, event)
            try:
                await self.ensure_unit(model)
            except BaseException as e:
                with suppress(OSError):
                    await asyncio.to_thread(files.remove, self._path(model))
                undone = Event(model=name, kind="register-failed", message=str(e) or "interrupted", actor=caller.actor)
                await self._store.delete_model(name, undone)
                raise
            self.models[name] = model
            self._refresh_warnings()
            return model

    async def _refuse_foreign_unit(self, model: Model) -> None:
        unit = await self._systemd.refresh(model.unit)
        if unit.load_state not in ("not-found", "error") and Path(unit.fragment_path) != self._path(model):
            where = unit.fragment_path or "a transient unit"
            raise UnitConflict(f"a unit {model.unit} exists already ({where}); choose another name")

    def _specs(self) -> list[ModelSpec]:
        return [m.spec for m in self.models.values()]

    async def change(self, model: Model, raw: Mapping[str, object], caller: Caller) -> None:
        """Change settings: all of them or none."""
        parsed = parse_settings(raw)
        if not parsed:
            raise InvalidConfig("no setting was given; use KEY=VALUE")
        old = model.definition
        async with self._choosing:
            others = [spec for spec in self._specs() if spec.name != model.name]
            explicit = await _look(fill_in, parsed, old.explicit, caller, self._scope, others)
            new = await _look(self._define, model.name, explicit)
            if new.text != old.text:
                await asyncio.to_thread(files.check_writable, self._path(model))
            shown = shown_settings(raw)
            message = "changed " + ", ".join(f"{name}={value}" for name, value in shown.items())
            event = Event(model=model.name, kind="set", message=message[:1000], actor=caller.actor, details=shown)
            await self._store.save_model(model.name, explicit, event)
            model.definition = new
        try:
            await self.ensure_unit(model)
        except BaseException as e:
            model.definition = old
            with suppress(OSError):
                await asyncio.to_thread(self._sync_file, model)
            undone = Event(model=model.name, kind="set-failed", message=str(e) or "interrupted", actor=caller.actor)
            await self._store.save_model(model.name, old.explicit, undone)
            raise

    async def remove(self, model: Model, actor: str) -> list[str]:
        """Forget a stopped model and delete its unit file; a file that was edited by hand is kept, and named. systemd is
        the caller's to tell: all of this is true even if it does not answer. Returns what was kept, a sentence each."""
        kept = []
        if await asyncio.to_thread(files.inspect, self._path(model)) in (FileState.CURRENT, FileState.OUTDATED):
            try:
                await asyncio.to_thread(files.remove, self._path(model))
            except OSError as e:
                raise StoreFailed(
                    f"{self._path(model)} cannot be deleted: {e.strerror}; delete it and try again"
                ) from e
        elif self._path(model).exists():
            kept.append(f"{self._path(model)} was not as cortexd wrote it and is kept; delete it if it is not needed")
        if (drop_ins := Path(f"{self._path(model)}.d")).exists():
            kept.append(f"{drop_ins} is kept, and would apply to the next model of that name")
        event = Event(model=model.name, kind="unregistered", message="; ".join(["unregistered", *kept]), actor=actor)
        try:
            await self._store.delete_model(model.name, event)
        except BaseException:
            with suppress(OSError):
                await asyncio.to_thread(self._sync_file, model)
            raise
        del self.models[model.name]
        self._refresh_warnings()
        return kept


_LOOK_SECONDS = 10.0


async def _look(function: Callable[..., _T], *arguments: object) -> _T:
    """Run what looks at a caller's files in a thread, and not for ever: a file system may not answer."""
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            return await asyncio.to_thread(function, *arguments)
    except TimeoutError:
        raise InvalidConfig(
            f"path: its file system does not answer within {_LOOK_SECONDS:g} s; check the mount"
        ) from None
