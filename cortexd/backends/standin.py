"""In place of a backend that cannot be used now: its file is gone or broken, and its models are to be kept all the same."""

from __future__ import annotations

from cortexd.backends.base import Backend, LaunchPlan
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_STOP_SECONDS = 300
"""Long enough for any server: the unit file says how long it is really given, and we only wait for it."""


class StandIn(Backend):
    """Nothing is started from it: what it plans serves to watch and to stop what runs."""

    name = "unknown"
    executables = ()
    endpoint = ""

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """As little as can be said."""
        return LaunchPlan(argv=(spec.exec,), environment={}, stop_seconds=_STOP_SECONDS)
