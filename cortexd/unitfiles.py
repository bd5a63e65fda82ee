"""The models' unit files in their folder: what is missing or outdated is written, what a person changed is kept. Blocking."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cortexd.durable import sync_folder
from cortexd.limits import DIRECTIVES
from cortexd.names import FOLDER_TEMPLATE, model_name, unit_name
from cortexd.registered import Model
from cortexd.scope import Scope
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import Tools, render_folder_template


@dataclass(frozen=True, slots=True)
class Drift:
    """How a model's unit file differs from what cortexd writes: what lies there, and what should."""

    state: FileState
    path: Path
    found: str
    wanted: str


class UnitFiles:
    """Of one scope."""

    def __init__(self, scope: Scope, tools: Tools) -> None:
        self._folder, self._tools = scope.unit_folder, tools

    def path(self, name: str) -> Path:
        """Where a model's unit file lies."""
        return self._folder / unit_name(name)

    def inspect(self, model: Model) -> FileState:
        """See what lies where the model's unit file belongs, and note it."""
        path = self.path(model.name)
        model.file_stamp = files.stamp(path)  # before: what is changed meanwhile shows at the next look
        model.file_state = files.inspect(path, model.definition.text)
        model.only_comments = model.file_state is FileState.EDITED and (
            files.digest(files.read(path), DIRECTIVES) == files.digest(model.definition.text, DIRECTIVES)
        )
        return model.file_state

    def changed(self, models: Iterable[Model]) -> list[Model]:
        """Those whose files somebody changed since they were looked at, which are inspected; one system call for each other."""
        found = [model for model in models if files.stamp(f"{self._folder}/{model.unit}") != model.file_stamp]
        for model in found:
            self.inspect(model)
        return found

    def drift(self, model: Model) -> Drift:
        """What lies where the model's unit file belongs, whatever it is."""
        path, wanted = self.path(model.name), model.definition.text
        return Drift(files.inspect(path, wanted), path, files.described(path), wanted)

    def replace(self, model: Model, kept: Path | None) -> None:
        """Write the model's unit file, whatever lies there, which is `kept` under another name. Raises OSError, and all is as
        it was."""
        path = self.path(model.name)
        if kept:
            files.keep(path, kept)
        try:
            files.write(path, model.definition.text)
        except BaseException:
            self.put_back(model, kept)
            raise
        self._written(model)

    def _written(self, model: Model) -> None:
        model.file_state, model.file_stamp = FileState.CURRENT, files.stamp(self.path(model.name))

    def put_back(self, model: Model, kept: Path | None) -> None:
        """Undo `replace`. Raises OSError."""
        path = self.path(model.name)
        if kept:
            files.put_back(path, kept)
        else:
            files.remove(path)
        self.inspect(model)

    def sync(self, model: Model, *, last: bool = True) -> bool:
        """Write the model's unit file if it is missing or outdated; returns whether it was. Unless it is the `last` one of
        several, it is the caller's to sync the folder. Raises OSError."""
        path = self.path(model.name)
        if model.backend_problem:
            self.inspect(model)
            return False
        changed = self._sync_template() if model.plan.writes or model.spec.hardening.read_write_paths else False
        if self.inspect(model) in (FileState.MISSING, FileState.OUTDATED):
            files.write(path, model.definition.text, sync=last)
            self._written(model)
            changed = True
        return changed

    def sync_each(self, models: Sequence[Model]) -> int:
        """The same for several; returns how many were written. Raises OSError."""
        changed = [self.sync(model, last=False) for model in models].count(True)
        if changed:
            sync_folder(self._folder)
        return changed

    def remove(self, name: str) -> bool:
        """Delete a unit file of ours that nobody has edited; returns whether there was one. Raises OSError."""
        path = self.path(name)
        if files.inspect(path) is not FileState.CURRENT:
            return False
        files.remove(path)
        return True

    def _sync_template(self) -> bool:
        path, text = self._folder / FOLDER_TEMPLATE, files.with_marker(render_folder_template(self._tools))
        if files.inspect(path, text) not in (FileState.MISSING, FileState.OUTDATED):
            return False
        files.write(path, text)
        return True

    def sync_all(self, models: Mapping[str, Model], warnings: list[str]) -> int:
        """The same for all; returns how many were written. Adds to `warnings` what cannot be written."""
        changed = 0
        for model in models.values():
            try:
                model.rewritten = self.sync(model, last=False)
                changed += model.rewritten
            except OSError as e:
                warnings.append(f"{self.path(model.name)} cannot be written: {e.strerror}")
        if changed:
            sync_folder(self._folder)
        for rest in self._folder.glob(".cortex-*.service.*"):
            with suppress(OSError):
                rest.unlink()  # half written by a daemon that was killed
        return changed

    def of_nobody(self, registered: Container[str]) -> dict[str, str]:
        """What was written for models that are not registered, a sentence each."""
        found = {}
        for name in sorted(filter(None, map(model_name, _names(self._folder)))):
            if name in registered:
                continue
            path = self.path(name)
            written = f"{path} was written by cortexd, but no model {name!r} is registered"
            match files.inspect(path):
                case FileState.CURRENT:
                    found[name] = f"{written}; register it again, or delete the file"
                case FileState.EDITED:
                    found[name] = f"{written}, and it was edited by hand; move it away, then register the model again"
        return found

    def template_problem(self) -> str:
        """What is wrong with the unit that all models share; empty where nothing is."""
        template = self._folder / FOLDER_TEMPLATE
        if files.inspect(template) not in (FileState.EDITED, FileState.FOREIGN):
            return ""
        return f"{template} is not what cortexd wrote and is kept; delete it, and the next start writes it again"


def _names(folder: Path) -> list[str]:
    """What lies in it; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []
