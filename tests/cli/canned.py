"""What the fake daemon answers: a model, a probe and an event, with whatever the test wants different."""

from __future__ import annotations

from typing import Any

from cortexd.names import unit_name

MISSING = 2**64 - 1

SETTINGS: dict[str, tuple[str, Any]] = {
    "path": ("s", "/models/tiny.gguf"),
    "backend": ("s", "llamacpp"),
    "port": ("t", 8080),
    "host": ("s", "127.0.0.1"),
    "gpus": ("as", []),
    "env": ("as", []),
    "memory": ("t", 32 * 1024**3),
    "MemoryHigh": ("t", 28 * 1024**3),
    "cpu": ("d", 4.0),
    "CPUWeight": ("t", 100),
    "IOWeight": ("t", 100),
    "TasksMax": ("t", 512),
    "max_restarts": ("t", 5),
    "NoNewPrivileges": ("b", True),
    "health.interval_seconds": ("d", 30.0),
}


def model(name: str, **changes: Any) -> dict[str, Any]:
    """A model's properties: stopped, and whatever the test wants different."""
    info = {
        "Name": name,
        "Unit": unit_name(name),
        "Backend": "llamacpp",
        "State": "stopped",
        "StateReason": "",
        "Health": "unknown",
        "HealthReason": "",
        "HealthFailures": 0,
        "URL": "http://127.0.0.1:8080",
        "Settings": dict(SETTINGS),
        "Secrets": [],
        "RestartNeeded": False,
        "Warnings": [],
        "LoadState": "loaded",
        "ActiveState": "inactive",
        "SubState": "dead",
        "Result": "success",
        "UnitFileState": "disabled",
        "FragmentPath": f"/home/u/.config/systemd/user/{unit_name(name)}",
        "DropInPaths": [],
        "InvocationID": "",
        "MainPID": 0,
        "ControlGroup": "",
        "StatusText": "",
        "NRestarts": 0,
        "FailedRuns": 0,
        "UsualLoadUSec": 0,
        "StateChangeTimestamp": 0,
        "MemoryCurrent": MISSING,
        "CPUUsageNSec": MISSING,
        "TasksCurrent": MISSING,
        "Limits": [],
    }
    assert set(changes) <= set(info), "a property that the API does not have"
    return {**info, **changes}


def health(**changes: Any) -> dict[str, tuple[str, Any]]:
    """CheckHealth's answer: healthy, and whatever the test wants different."""
    values = {
        "Health": "healthy",
        "State": "ready",
        "StateReason": "",
        "StateChangeTimestamp": 0,
        "UsualLoadUSec": 0,
        "Healthy": True,
        "Outcome": "ok",
        "Reason": "",
        "LatencyUSec": 3200,
        "Endpoint": "http://127.0.0.1:8080/health",
        "Failures": 0,
        "MaxFailures": 3,
        "FailedRuns": 0,
        "MaxRestarts": 5,
        "Next": "after 3 failed probes in a row it is restarted",
        "History": [(1_700_000_000_000_000, "http", "ok", 3200, "ok")],
    }
    types = {"Healthy": "b", "LatencyUSec": "t", "Failures": "u", "MaxFailures": "u", "History": "a(tssts)"}
    types |= {"FailedRuns": "u", "MaxRestarts": "u"}
    types |= {"StateChangeTimestamp": "t", "UsualLoadUSec": "t"}
    return {key: (types.get(key, "s"), value) for key, value in {**values, **changes}.items()}


def backend(name: str, **changes: Any) -> dict[str, tuple[str, Any]]:
    """One of ListBackends: built in, on no PATH, and whatever the test wants different."""
    values = {
        "Name": name,
        "Description": f"what {name} is",
        "Source": "built-in",
        "Executable": "",
        "Endpoint": "/health",
        "Quantizations": [],
        "Problem": "",
    }
    return {key: ("as" if key == "Quantizations" else "s", value) for key, value in {**values, **changes}.items()}


def cause(**changes: Any) -> dict[str, tuple[str, Any]]:
    """Why's answer: a port that is taken, and whatever the test wants different."""
    values = {
        "Cause": "port-in-use",
        "Sentence": "port 8080 is taken by another program",
        "Remedy": "stop it, or 'cortexctl set a port=auto'",
        "Evidence": [("Result", "exit-code"), ("Restarts", "3"), ("Log", "bind: address already in use")],
    }
    return {key: ("a(ss)" if key == "Evidence" else "s", value) for key, value in {**values, **changes}.items()}


def event(number: int, **changes: Any) -> dict[str, tuple[str, Any]]:
    """One entry of the audit log."""
    values = {
        "Id": number,
        "Time": 1_700_000_000_000_000 + number,
        "Model": "a",
        "Kind": "start",
        "Priority": "info",
        "Message": f"message {number}",
        "Details": "{}",
        "InvocationID": "",
        "Actor": "uid 1000",
    }
    types = {"Id": "t", "Time": "t"}
    return {key: (types.get(key, "s"), value) for key, value in {**values, **changes}.items()}


def drift(state: str = "current", found: str = "[Service]\n", kept: str = "") -> dict[str, Any]:
    """What Repair found."""
    values = {"State": state, "Path": "/u/cortex-a.service", "Found": found, "Wanted": "[Service]\n", "Kept": kept}
    return {key: ("s", value) for key, value in values.items()}
