"""From what was asked for to a model's whole definition: settings, launch plan, unit text. Blocking: looks at files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cortexd.backends import Backend, LaunchPlan, backend_of
from cortexd.checks import check_spec
from cortexd.kinds import INFINITY, Value
from cortexd.model import DEFAULT_BACKEND, ModelSpec, ResourceLimits, build_spec
from cortexd.registered import Definition, Model
from cortexd.scope import Scope
from cortexd.secrets import NO_SECRETS, Known
from cortexd.units import files, quoting
from cortexd.units.render import Tools, render_unit

_ALIKE = ResourceLimits(memory_high=INFINITY, tasks_max=1)
"""Limits for comparing what does not depend on them."""


class Definer:
    """Makes definitions for the models of one scope."""

    def __init__(self, scope: Scope, tools: Tools) -> None:
        self._scope, self._tools = scope, tools

    def define(
        self, name: str, explicit: Mapping[str, Value], secrets: Known = NO_SECRETS, *, check: bool = True
    ) -> Definition:
        """The definition of a model of these settings. Raises InvalidConfig; where `check` is false, only for what cannot
        be written as a unit."""
        backend = backend_of(str(explicit.get("backend", DEFAULT_BACKEND)), self._scope)
        gpus = explicit.get("gpus", ("0",))
        count = len(gpus) if isinstance(gpus, tuple) else 0
        defaults = backend.defaults(count)
        if explicit.get("security") == "strict" and not count and not backend.compiles:
            defaults["MemoryDenyWriteExecute"] = True
        spec = build_spec(name, explicit, defaults)
        if check:
            check_spec(spec, backend, self._scope)
        plan = backend.plan(spec, self._scope.with_environment(spec.env))
        if check:
            backend.check_plan(spec, plan)
        text = render_unit(spec, plan, self._scope, self._tools, secrets.names)
        text = files.with_marker(files.settings_line(explicit) + text)
        variables = (f"{name}={value}" for name, value in plan.environment.items())
        quoting.check_length(text, (*plan.argv, *variables, *spec.env))
        return Definition(explicit, spec, backend, plan, text, secrets, self._lasting(spec, backend, plan, secrets))

    def _lasting(self, spec: ModelSpec, backend: Backend, plan: LaunchPlan, secrets: Known) -> str:
        """See Definition."""
        alike = replace(spec, limits=_ALIKE)
        other = backend.plan(alike, self._scope.with_environment(spec.env))
        if other == plan:
            return ""
        return files.with_marker(render_unit(alike, other, self._scope, self._tools, secrets.names))

    def again(self, model: Model) -> Definition:
        """Its definition made anew. Raises InvalidConfig."""
        return self.define(model.name, model.definition.explicit, model.definition.secrets, check=False)
