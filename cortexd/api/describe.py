"""A model, a job and an event as D-Bus values, keyed as in the XML."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

from cortexd.backends import Listed
from cortexd.bus import Variant
from cortexd.diagnosis.why import Cause
from cortexd.events import Event
from cortexd.health.policy import Probe
from cortexd.kinds import Value
from cortexd.limits import Verdict
from cortexd.manager import ModelView
from cortexd.model import SETTINGS, settings_of
from cortexd.repair import Repaired
from cortexd.states import State
from cortexd.systemd.protocol import UnitUsage

_SERVING = (State.READY, State.BUSY, State.DEGRADED, State.UNHEALTHY)
"""States of a server that is there to be asked."""


def _current(view: ModelView) -> bool:
    """Whether what is known of its health is of the run that is now."""
    return view.model.health.run == view.unit.invocation_id and view.unit.active_state == "active"


def _health(view: ModelView) -> str:
    model, health = view.model, view.model.health
    if not model.probed:
        return "off"
    if not (_current(view) and health.probed):
        return "unknown"
    return "busy" if health.busy else "failing" if health.failures else "healthy"


_PROPERTIES: dict[str, Callable[[ModelView], Any]] = {
    "Name": lambda view: view.model.name,
    "Unit": lambda view: view.model.unit,
    "Backend": lambda view: view.model.spec.backend,
    "State": lambda view: view.judgement.state.value,
    "StateReason": lambda view: view.judgement.reason,
    "Health": _health,
    "HealthReason": lambda view: view.model.health.reason if _current(view) else "",
    "HealthFailures": lambda view: view.model.health.failures if _current(view) else 0,
    "URL": lambda view: view.model.url,
    "Settings": lambda view: settings_values(view),
    "Secrets": lambda view: list(view.model.definition.secrets.names),
    "RestartNeeded": lambda view: view.model.outdated,
    "Warnings": lambda view: list(view.model.warnings),
    "LoadState": lambda view: view.unit.load_state,
    "ActiveState": lambda view: view.unit.active_state,
    "SubState": lambda view: view.unit.sub_state,
    "Result": lambda view: view.unit.result,
    "UnitFileState": lambda view: view.unit.unit_file_state,
    "FragmentPath": lambda view: view.unit.fragment_path,
    "DropInPaths": lambda view: list(view.unit.drop_in_paths),
    "InvocationID": lambda view: view.unit.invocation_id,
    "MainPID": lambda view: view.unit.main_pid,
    "ControlGroup": lambda view: view.unit.control_group,
    "StatusText": lambda view: view.unit.status_text,
    "NRestarts": lambda view: _restarts(view),
    "FailedRuns": lambda view: view.model.budget.failed,
    "UsualLoadUSec": lambda view: round(view.model.usual_load * 1e6),
    "StateChangeTimestamp": lambda view: view.unit.state_change,
}

SIGNALLED = tuple(_PROPERTIES)
"""The properties of the Model interface that are signalled: all but counters and limits."""


def model_properties(view: ModelView, names: Collection[str] = SIGNALLED) -> dict[str, Any]:
    """Those of the signalled properties that are among `names`."""
    return {name: value(view) for name, value in _PROPERTIES.items() if name in names}


def usage_properties(usage: UnitUsage) -> dict[str, Any]:
    """The counters."""
    return {"MemoryCurrent": usage.memory, "CPUUsageNSec": usage.cpu_nsec, "TasksCurrent": usage.tasks}


def limits_property(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Which limits are in force."""
    return {"Limits": [[v.setting, v.requested, v.effective, v.reason, v.remedy] for v in verdicts]}


def settings_values(view: ModelView) -> dict[str, Variant]:
    """Every setting of a model in its own type."""
    return {name: _setting(name, value) for name, value in settings_of(view.model.spec).items()}


def _restarts(view: ModelView) -> int:
    """How often systemd has restarted it: at its own limit of starts it counts one that was none (252, 257)."""
    none = view.unit.active_state == "failed" and view.model.budget.start_limit
    return max(view.unit.n_restarts - none, 0)


@lru_cache(maxsize=4096)
def _setting(name: str, value: Value) -> Variant:
    """The same one for all models that have this value: most settings are defaults, and a thousand models have fifty thousand."""
    return Variant(SETTINGS[name].kind.signature, value)


def probe_values(view: ModelView, probe: Probe) -> dict[str, Variant]:
    """The outcome of a probe that was asked for, what it means in the model's state, and where the liveness loop stands."""
    model, state = view.model, view.judgement.state
    current = model.health.run == view.unit.invocation_id
    failures = model.health.failures if current else 0
    history = model.health.history if current else ()
    word = _meaning(probe, busy=current and model.health.busy) if state in _SERVING else "unknown"
    return {
        "Health": Variant("s", word),
        "State": Variant("s", state.value),
        "StateReason": Variant("s", view.judgement.reason),
        "StateChangeTimestamp": Variant("t", view.unit.state_change),
        "UsualLoadUSec": Variant("t", round(model.usual_load * 1e6)),
        "Healthy": Variant("b", probe.ok),
        "Outcome": Variant("s", probe.outcome.value),
        "Reason": Variant("s", probe.reason),
        "LatencyUSec": Variant("t", int(probe.latency * 1e6)),
        "Endpoint": Variant("s", model.health_url),
        "Failures": Variant("u", failures),
        "MaxFailures": Variant("u", model.spec.health.max_failures),
        "FailedRuns": Variant("u", model.budget.failed),
        "MaxRestarts": Variant("u", model.spec.restart.max_restarts),
        "Next": Variant("s", _coming(view, failures)),
        "History": Variant(
            "a(tssts)",
            [(past.time, past.asked, past.outcome.value, int(past.latency * 1e6), past.meaning) for past in history],
        ),
    }


def _meaning(probe: Probe, *, busy: bool) -> str:
    """What a probe says of a server that is ready: a time-out only that it is busy, where the liveness loop has just found so."""
    if probe.ok:
        return "healthy"
    return "busy" if busy and probe.timed_out else "failing"


def _coming(view: ModelView, failures: int) -> str:
    """What the next failures lead to, counted from now: the probe that was asked for does not count."""
    model, state = view.model, view.judgement.state
    policy = model.spec.health
    if not (policy.enabled and model.endpoint):
        return "nothing: health checks are off"
    run = view.unit.invocation_id
    spent = model.budget.failed_with(run) if model.is_last(run) else 0
    if state is State.RESTARTING and spent:
        return f"nothing: it is stopped for good: {_spent(spent, 'is')}"
    if state in (State.STARTING, State.RESTARTING):
        return "liveness probes begin once it is ready"
    if state not in _SERVING:
        return "nothing: the model is not running"
    if model.ending.run == run and model.ending.by == "health":
        coming = f"is stopped for good: {_spent(spent, 'is')}" if spent else "systemd starts it again"
        return f"it is being killed, and {coming}"
    left = max(policy.max_failures - failures, 1)  # past the limit every further one asks for a restart again
    word = "more failed" if failures else "failed"
    after = f"{left} {word} probes in a row" if left > 1 else f"one {word} probe"
    if model.spec.restart.restart == "no":
        return f"after {after} it counts as unhealthy, and is not restarted (Restart=no)"
    return f"after {after} it is " + (f"stopped for good: {_spent(spent, 'would be')}" if spent else "restarted")


def _spent(runs: int, verb: str) -> str:
    return f"that {verb} {runs} failed runs in a row" if runs > 1 else "max_restarts allows no failed run"


def repair_values(repaired: Repaired) -> dict[str, Variant]:
    """How a unit file differed, and where what was there is kept."""
    drift = repaired.drift
    return {
        "State": Variant("s", drift.state.value),
        "Path": Variant("s", str(drift.path)),
        "Found": Variant("s", drift.found),
        "Wanted": Variant("s", drift.wanted),
        "Kept": Variant("s", str(repaired.kept or "")),
    }


def backend_values(listed: Listed, executable: str) -> dict[str, Variant]:
    """One backend, and where its executable is."""
    backend = listed.backend
    return {
        "Name": Variant("s", listed.name),
        "Description": Variant("s", listed.description),
        "Source": Variant("s", listed.source),
        "Executable": Variant("s", executable),
        "Endpoint": Variant("s", backend.endpoint if backend else ""),
        "Quantizations": Variant("as", list(backend.quantizations) if backend else []),
        "Problem": Variant("s", listed.problem),
    }


def cause_values(cause: Cause) -> dict[str, Variant]:
    """Why a model does not run."""
    return {
        "Cause": Variant("s", cause.cause),
        "Sentence": Variant("s", cause.sentence),
        "Remedy": Variant("s", cause.remedy),
        "Evidence": Variant("a(ss)", list(cause.evidence)),
    }


def event_values(event: Event) -> dict[str, Variant]:
    """One line of the audit log."""
    return {
        "Id": Variant("t", event.id),
        "Time": Variant("t", event.time),
        "Model": Variant("s", event.model),
        "Kind": Variant("s", event.kind),
        "Priority": Variant("s", event.priority.value),
        "Message": Variant("s", event.message),
        "Details": Variant("s", json.dumps(event.details, sort_keys=True)),
        "InvocationID": Variant("s", event.invocation_id),
        "Actor": Variant("s", event.actor),
    }
