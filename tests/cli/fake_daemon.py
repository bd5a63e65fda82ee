"""A cortexd with canned answers, on a thread of its own: it serves exactly what dbus/*.xml declares, and nothing else.

It knows nothing about models: a test sets what is answered, and looks at what was asked.
"""

from __future__ import annotations

import fnmatch
import os
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jeepney import DBusAddress, new_signal

from cortexd.names import BUS_NAME, JOB_PREFIX, MANAGER_INTERFACE, MODEL_INTERFACE, ROOT_PATH, model_path
from cortexd.version import VERSION
from tests.cli.canned import SETTINGS, backend, cause, drift, event, health, model
from tests.cli.service import Asked, Refusal, Service

XML = Path(__file__).parents[2] / "dbus"
PROPERTIES = "org.freedesktop.DBus.Properties"


def _declared() -> tuple[dict[tuple[str, str], tuple[str, str]], dict[str, dict[str, str]]]:
    """Methods: (interface, member) → (in, out); properties: interface → name → type."""
    methods: dict[tuple[str, str], tuple[str, str]] = {}
    properties: dict[str, dict[str, str]] = {}
    for file in XML.glob("org.cortexlinux.*.xml"):
        for interface in ElementTree.parse(file).getroot().iter("interface"):
            owner = interface.attrib["name"]
            properties[owner] = {p.attrib["name"]: p.attrib["type"] for p in interface.iter("property")}
            for method in interface.iter("method"):
                arguments = [(a.attrib["direction"], a.attrib["type"]) for a in method.iter("arg")]
                taken, given = ("".join(t for d, t in arguments if d == way) for way in ("in", "out"))
                methods[owner, method.attrib["name"]] = (taken, given)
    return methods, properties


class FakeDaemon(Service):
    """Set `models` and `answers`; read `asked`."""

    name = BUS_NAME

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.models: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, Any] = {}
        """Member → values of the reply, a Refusal, or a function of the call that returns or raises one."""
        self.version = VERSION
        self.warnings: list[str] = []
        self._methods, self._properties = _declared()

    def add(self, *infos: dict[str, Any]) -> None:
        """Register models without asking."""
        self.models.update((info["Name"], info) for info in infos)

    def change(self, name: str, **changes: Any) -> None:
        """Change a model's properties, and say so on the bus."""
        self.models[name].update(changes)
        typed = {key: self._typed(MODEL_INTERFACE, key, value) for key, value in changes.items()}
        sender = DBusAddress(model_path(name), interface=PROPERTIES)
        self._send(new_signal(sender, "PropertiesChanged", "sa{sv}as", (MODEL_INTERFACE, typed, [])))

    def tell(self) -> None:
        """Send a signal that means nothing but that something happened."""
        sender = DBusAddress(ROOT_PATH, interface=MANAGER_INTERFACE)
        body = (JOB_PREFIX + "9", "a", "start", "done")
        self._send(new_signal(sender, "JobRemoved", "osss", body))

    def reply(self, asked: Asked, interface: str, signature: str) -> tuple[str, tuple[Any, ...]]:
        if interface == PROPERTIES:
            return self._property(asked)
        declared = self._methods.get((interface, asked.member))
        if declared is None:
            raise Refusal("org.freedesktop.DBus.Error.UnknownMethod", f"no method {asked.member}")
        if declared[0] != signature:
            raise Refusal("org.freedesktop.DBus.Error.InvalidArgs", f"{asked.member} takes {declared[0]}")
        answer = self.answers.get(asked.member)
        if callable(answer):
            answer = answer(asked)
        if isinstance(answer, Refusal):
            raise answer
        if answer is None:
            answer = getattr(self, f"_do_{asked.member}")(asked)
        return declared[1], answer

    def _property(self, asked: Asked) -> tuple[str, tuple[Any, ...]]:
        values: dict[str, Any] = {"Version": self.version, "SystemdVersion": "252", "ModelCount": len(self.models)}
        values["Warnings"] = self.warnings
        if asked.body[0] == MODEL_INTERFACE:
            values = next(info for info in self.models.values() if model_path(info["Name"]) == asked.path)
        if asked.member == "Get":
            return "v", (self._typed(asked.body[0], asked.body[1], values[asked.body[1]]),)
        return "a{sv}", ({key: self._typed(asked.body[0], key, value) for key, value in values.items()},)

    def _typed(self, interface: str, key: str, value: Any) -> tuple[str, Any]:
        return self._properties[interface][key], value

    def _do_ListModels(self, asked: Asked) -> tuple[Any, ...]:
        patterns, options = asked.body
        wanted = {key for key in self._properties[MODEL_INTERFACE] if key != "Settings" or "settings" in options}
        if "usage" not in options:
            wanted -= {"MemoryCurrent", "CPUUsageNSec", "TasksCurrent"}
        if "limits" not in options:
            wanted -= {"Limits"}
        if "properties" in options:
            wanted &= (
                {*options["properties"][1]} if isinstance(options["properties"], tuple) else {*options["properties"]}
            )
        for pattern in patterns:
            if not set(pattern) & set("*?[") and pattern not in self.models:
                raise Refusal(
                    "NoSuchModel", f"no model '{pattern}' is registered; 'cortexctl list' shows those that are"
                )
        found = [
            info
            for name, info in sorted(self.models.items())
            if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        return ([{key: self._typed(MODEL_INTERFACE, key, info[key]) for key in wanted} for info in found],)

    def _do_GetModel(self, asked: Asked) -> tuple[Any, ...]:
        (name,) = asked.body
        self._do_ListModels(Asked(ROOT_PATH, "ListModels", ([name], {})))  # refuses a name that is unknown
        return (model_path(name),)

    def _do_Register(self, asked: Asked) -> tuple[Any, ...]:
        name = asked.body[0]
        self.add(model(name))
        return model_path(name), []

    def _do_ListEvents(self, asked: Asked) -> tuple[Any, ...]:
        return ([],)

    def _do_ListBackends(self, asked: Asked) -> tuple[Any, ...]:
        return ([backend(name) for name in ("vllm", "llamacpp", "ollama", "tgi")],)

    def _do_ListSettings(self, asked: Asked) -> tuple[Any, ...]:
        return ([(name, kind, "", "restart", "meaning") for name, (kind, _) in SETTINGS.items()],)

    def _job(self, asked: Asked) -> tuple[Any, ...]:
        return (f"{JOB_PREFIX}{len(self.asked)}",)

    _do_Start = _do_Stop = _do_Restart = _do_Unregister = _job

    def _do_Wait(self, asked: Asked) -> tuple[Any, ...]:
        return "done", []

    def _do_Enable(self, asked: Asked) -> tuple[Any, ...]:
        return ([],)

    def _nothing(self, asked: Asked) -> tuple[Any, ...]:
        return ()

    _do_Disable = _do_Kill = _do_ResetFailed = _do_RemoveSecret = _nothing

    def _do_SetSecret(self, asked: Asked) -> tuple[Any, ...]:
        return (False,)

    def _do_Set(self, asked: Asked) -> tuple[Any, ...]:
        return False, []

    def _do_GetUnitFiles(self, asked: Asked) -> tuple[Any, ...]:
        name = next(name for name in self.models if model_path(name) == asked.path)
        return ([(self.models[name]["FragmentPath"], "[Service]\nExecStart=/bin/true\n")],)

    def _do_Repair(self, asked: Asked) -> tuple[Any, ...]:
        return (drift(),)

    def _do_Check(self, asked: Asked) -> tuple[Any, ...]:
        return ([],)

    def _do_GetSecurity(self, asked: Asked) -> tuple[Any, ...]:
        return ([("NoNewPrivileges", "yes", "in force", "the server cannot gain privileges")],)

    def _do_CheckHealth(self, asked: Asked) -> tuple[Any, ...]:
        return (health(),)

    def _do_Why(self, asked: Asked) -> tuple[Any, ...]:
        return (cause(),)


def main() -> None:
    """Serve a few models on the session bus, to look at the output by hand."""
    now = int(time.time() * 1e6)
    with FakeDaemon(os.environ["DBUS_SESSION_BUS_ADDRESS"]) as daemon:
        running = {"ActiveState": "active", "SubState": "running", "MainPID": os.getpid(), "UnitFileState": "enabled"}
        daemon.add(
            model(
                "llama-70b",
                Backend="vllm",
                State="ready",
                Health="healthy",
                MemoryCurrent=126 * 10**9,
                CPUUsageNSec=83 * 10**9,
                TasksCurrent=75,
                StateChangeTimestamp=now - 7_380_000_000,
                URL="http://127.0.0.1:8000",
                ControlGroup="/user.slice/cortex.slice/x",
                **running,
            ),
            model(
                "qwen",
                State="failed",
                StateReason="the server exited with status 1: no such file /models/q.gguf",
                ActiveState="failed",
                SubState="failed",
                Result="exit-code",
                StateChangeTimestamp=now - 5_000_000,
            ),
            model(
                "tiny", State="starting", ActiveState="activating", SubState="start-post", StatusText="loading model"
            ),
            model(
                "mistral",
                Backend="tgi",
                RestartNeeded=True,
                State="degraded",
                StateReason="holds no GPU memory",
                Health="failing",
                HealthFailures=2,
                HealthReason="503",
                **running,
            ),
        )
        daemon.answers["ListEvents"] = ([event(n, Priority=p) for n, p in enumerate(("info", "warning", "error"))],)
        if os.environ.get("FAKE_MODELS"):
            daemon.models.clear()
            daemon.add(
                *(model(f"model-{n:04}", State="ready", **running) for n in range(int(os.environ["FAKE_MODELS"])))
            )
        threading.Event().wait()


if __name__ == "__main__":
    main()
