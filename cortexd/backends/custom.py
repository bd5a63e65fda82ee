"""A backend that a file describes (docs/backends.md): what its form says, as settings → launch plan."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cortexd.backends import template
from cortexd.backends.base import (
    Activity,
    Backend,
    EngineProbe,
    LaunchPlan,
    extra,
    folders,
    gpu_environment,
    hub_cache,
    is_reference,
    local_model,
    opened,
    packages,
    path_environment,
)
from cortexd.backends.form import Form, body_text
from cortexd.backends.gguf import first_bytes
from cortexd.errors import InvalidConfig
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_TASKS_MAX = 512


class CustomBackend(Backend):
    """One backend file. Two of them are the same object as long as the file has not changed (see library)."""

    def __init__(self, name: str, form: Form, source: Path) -> None:
        self.source = source
        self.form = form
        # A built-in backend is a class of its own and says these of the class; here every object has its own.
        vars(self).update(
            name=name,
            executables=form.executables,
            version=form.version,
            endpoint=form.endpoint,
            quantizations=form.quantizations,
            restart=form.restart,
            owned=form.owned,
            secret_flags=form.secret_flags,
            note=form.note,
            splits=form.splits,
        )

    def defaults(self, gpus: int) -> dict[str, Value]:
        """Settings whose default is the file's."""
        per_gpu = self.form.tasks_max_per_gpu * max(1, gpus)
        return super().defaults(gpus) | {"TasksMax": per_gpu or self.form.tasks_max or _TASKS_MAX}

    def find(self, search_path: str) -> str | None:
        """The first of its executables, or the first python on PATH that has its package installed."""
        if not self.form.python_package:
            return super().find(search_path)
        for name in ("python", "python3"):
            python = shutil.which(name, path=search_path)
            if python and packages(Path(python), self.form.python_package):
                return str(Path(python).absolute())
        return None

    def missing(self) -> str:
        """Says that a python counts where the file wants one."""
        if not self.form.python_package:
            return super().missing()
        package = self.form.python_package
        return f"exec: no python on your PATH has the package {package}; install it there, or give --exec PYTHON"

    def version_command(self, spec: ModelSpec) -> tuple[str, ...]:
        """A python says whether it has the package."""
        if not self.form.python_package:
            return super().version_command(spec)
        package = self.form.python_package
        look = f"import importlib.util as u, sys; u.find_spec({package!r}) or sys.exit('No module named {package}')"
        return (spec.exec, "-c", look)

    def check(self, spec: ModelSpec) -> None:
        """The model must be of a kind that the file names."""
        super().check(spec)
        if is_reference(spec.path):
            if "reference" not in self.form.paths:
                kinds = " or a ".join(kind for kind in self.form.paths)
                raise InvalidConfig(f"path={spec.path!r}: {self.name} takes no reference; give a {kinds} that exists")
            return
        path = Path(spec.path)
        kind = "folder" if path.is_dir() else "file"
        if kind not in self.form.paths:
            raise InvalidConfig(
                f"path={spec.path!r}: {self.name} takes no {kind}; give a {' or a '.join(self.form.paths)}"
            )
        if kind == "file":
            self._check_file(path)

    def _check_file(self, path: Path) -> None:
        if self.form.suffixes and not path.name.endswith(self.form.suffixes):
            wanted = " or ".join(self.form.suffixes)
            raise InvalidConfig(f"path={str(path)!r}: {self.name} takes files that end with {wanted}; give one")
        if not self.form.magic:
            return
        try:
            begin = first_bytes(path, len(self.form.magic))
        except OSError as e:
            raise InvalidConfig(f"path={str(path)!r}: {e.strerror}; check the file and its mode") from None
        if begin != self.form.magic:
            magic = self.form.magic.decode()
            raise InvalidConfig(
                f"path={str(path)!r}: does not begin with {magic!r} as {self.name} wants; give another file"
            )

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """The form with this model's values in place of its placeholders; each word stays one."""
        form, values = self.form, template.values_of(spec, scope)
        parts = (p for p in form.command if not p.when or template.CONDITIONS[p.when][1](spec))
        argv = [template.fill(word, values) for part in parts for word in part.words]
        caches = hub_cache(scope) if form.hub_cache else {}
        given = {name: template.fill(value, values) for name, value in form.environment.items()}
        reads = [self._opened("reads", text, values, scope) for text in form.reads]
        if argv[0] != spec.exec:
            reads.append(Path(spec.exec))
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            environment=gpu_environment(spec) | path_environment(spec) | caches | given,
            unset_environment=form.unset_environment,
            writes=(*folders(caches), *(self._opened("writes", text, values, scope) for text in form.writes)),
            reads=(*local_model(spec), *reads),
            kill_signal=form.kill_signal,
            stop_seconds=form.stop_seconds,
            success_exit_status=form.success_exit_status,
            api_key=form.api_key,
            engine=EngineProbe(form.engine_path, body_text(form.engine_body, values)) if form.engine_path else None,
            activity=Activity(form.activity_path, form.activity_counters) if form.activity_path else None,
        )

    def check_folders(self, scope: Scope) -> None:
        """Refuse folders that no model of it could have, whatever its name: InvalidConfig."""
        values = {"home": str(scope.home), "cache": str(scope.cache), "name": "{name}"}
        for key in ("writes", "reads"):
            for text in getattr(self.form, key):
                self._opened(key, text, values, scope)

    def _opened(self, key: str, text: str, values: dict[str, str], scope: Scope) -> Path:
        """What the server may read or write. What could change a unit or a command line, or holds others' secrets, is not."""
        text_of = "{home}" + text[1:] if text.startswith("~/") else text
        folder = "/" + os.path.normpath(template.fill(text_of, values)).lstrip("/")
        if ours := opened(folder, scope):
            raise InvalidConfig(
                f"{self.source}: {key}={text!r}: would open {ours}, which no model may see; name another folder"
            )
        return Path(folder)
