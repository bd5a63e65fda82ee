"""The models' unit files in their folder: what is missing or outdated is written, what a person changed is kept. Blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cortexd.names import model_name, unit_name
from cortexd.registered import Model
from cortexd.scope import Scope
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import FOLDER_TEMPLATE, Tools, render_folder_template


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
        model.file_state = FileState.CURRENT

    def put_back(self, model: Model, kept: Path | None) -> None:
        """Undo `replace`. Raises OSError."""
        path = self.path(model.name)
        if kept:
            files.put_back(path, kept)
        else:
            files.remove(path)
        model.file_state = files.inspect(path, model.definition.text)

    def sync(self, model: Model, *, last: bool = True) -> bool:
        """Write the model's unit file if it is missing or outdated; returns whether it was. Unless it is the `last` one of
        several, it is the caller's to sync the folder. Raises OSError."""
        path = self.path(model.name)
        if model.backend_problem:
            model.file_state = files.inspect(path, model.definition.text)
            return False
        changed = self._sync_template() if model.plan.writes or model.spec.hardening.read_write_paths else False
        model.file_state = files.inspect(path, model.definition.text)
        if model.file_state in (FileState.MISSING, FileState.OUTDATED):
            files.write(path, model.definition.text, sync=last)
            model.file_state = FileState.CURRENT
            changed = True
        return changed

    def sync_each(self, models: Sequence[Model]) -> int:
        """The same for several; returns how many were written. Raises OSError."""
        changed = [self.sync(model, last=False) for model in models].count(True)
        if changed:
            files.sync_folder(self._folder)
        return changed

    def remove_all(self, models: Sequence[Model]) -> None:
        """Delete unit files of ours. Raises OSError."""
        for model in models:
            files.remove(self.path(model.name))

    def _sync_template(self) -> bool:
        path, text = self._folder / FOLDER_TEMPLATE, files.with_marker(render_folder_template(self._tools))
        if files.inspect(path, text) not in (FileState.MISSING, FileState.OUTDATED):
            return False
        files.write(path, text)
        return True

    def sync_all(self, models: Mapping[str, Model], warnings: list[str]) -> int:
        """The same for all; returns how many were written. Adds to `warnings` what cannot be written, and what was written
        for a model that is not among them."""
        changed = 0
        for model in models.values():
            try:
                model.rewritten = self.sync(model, last=False)
                changed += model.rewritten
            except OSError as e:
                warnings.append(f"{self.path(model.name)} cannot be written: {e.strerror}")
        if changed:
            files.sync_folder(self._folder)
        template = self._folder / FOLDER_TEMPLATE
        if files.inspect(template) in (FileState.EDITED, FileState.FOREIGN):
            warnings.append(
                f"{template} is not what cortexd wrote and is kept; delete it, and the next start writes it again"
            )
        for rest in self._folder.glob(".cortex-*.service.*"):
            with suppress(OSError):
                rest.unlink()  # half written by a daemon that was killed
        for path in sorted(self._folder.glob("cortex-*.service")):
            name = model_name(path.name)
            if name and name not in models and files.inspect(path) in (FileState.CURRENT, FileState.EDITED):
                warnings.append(
                    f"{path} was written by cortexd, but no model {name!r} is registered; register it again, or delete the file"
                )
        return changed
