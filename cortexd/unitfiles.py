"""The models' unit files in their folder: what is missing or outdated is written, what a person changed is kept. Blocking."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cortexd.names import model_name, unit_name
from cortexd.registered import Model
from cortexd.scope import Scope
from cortexd.units import files
from cortexd.units.files import FileState
from cortexd.units.render import FOLDER_TEMPLATE, Tools, render_folder_template


class UnitFiles:
    """Of one scope."""

    def __init__(self, scope: Scope, tools: Tools) -> None:
        self._folder, self._tools = scope.unit_folder, tools

    def path(self, name: str) -> Path:
        """Where a model's unit file lies."""
        return self._folder / unit_name(name)

    def sync(self, model: Model) -> bool:
        """Write the model's unit file if it is missing or outdated. Raises OSError."""
        path = self.path(model.name)
        if model.backend_problem:
            model.file_state = files.inspect(path, model.definition.text)
            return False
        changed = self._sync_template() if model.plan.writes or model.spec.hardening.read_write_paths else False
        model.file_state = files.inspect(path, model.definition.text)
        if model.file_state in (FileState.MISSING, FileState.OUTDATED):
            files.write(path, model.definition.text)
            model.file_state = FileState.CURRENT
            changed = True
        return changed

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
                model.rewritten = self.sync(model)
                changed += model.rewritten
            except OSError as e:
                warnings.append(f"{self.path(model.name)} cannot be written: {e.strerror}")
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
