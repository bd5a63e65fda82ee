"""The D-Bus face: what the XML says, what the code does, and what a caller sees of it."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

import cortexd.bus
from cortexd import decoding, encoding, jobs, logs, observer, transport
from cortexd.api import interfaces, objects, server
from cortexd.api.job import JobObject
from cortexd.api.manager import ManagerObject
from cortexd.api.model import ModelObject
from cortexd.api.objects import export
from cortexd.api.server import Exported, Server
from cortexd.bus import Bus, BusError, Call, Variant
from cortexd.errors import ERROR_PREFIX
from cortexd.health.policy import Outcome
from cortexd.model import SETTINGS
from cortexd.names import JOB_INTERFACE, MANAGER_INTERFACE, MODEL_INTERFACE, ROOT_PATH, model_path
from cortexd.registration import Caller
from cortexd.states import State
from cortexd.store import EventQuery
from cortexd.systemd.protocol import UnitUsage
from cortexd.version import VERSION
from tests.support import lab
from tests.support.house import House
from tests.support.wait import aio_until

DBUS_ERROR = "org.freedesktop.DBus.Error."
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
CLASSES: dict[str, type[Exported]] = {
    MANAGER_INTERFACE: ManagerObject,
    MODEL_INTERFACE: ModelObject,
    JOB_INTERFACE: JobObject,
    logs.LOG_CONTROL: logs.LogControl,
}


class Client:
    """Somebody on the bus who talks to cortexd."""

    def __init__(self, bus: Bus, destination: str) -> None:
        self.bus, self.destination = bus, destination
        self.signals: list[cortexd.bus.Signal] = []

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """The reply's only value, or all of them."""
        reply = await self.bus.call(self.destination, path, interface, member, signature, body)
        return reply[0] if len(reply) == 1 else reply

    async def manager(self, member: str, signature: str = "", *body: Any) -> Any:
        return await self.call(ROOT_PATH, MANAGER_INTERFACE, member, signature, *body)

    async def model(self, name: str, member: str, signature: str = "", *body: Any) -> Any:
        return await self.call(model_path(name), MODEL_INTERFACE, member, signature, *body)

    async def job(self, path: str, member: str, options: dict[str, Variant] | None = None) -> Any:
        return await self.call(path, JOB_INTERFACE, member, "a{sv}", options or {})

    async def get(self, path: str, interface: str, name: str) -> Any:
        return await self.call(path, PROPERTIES, "Get", "ss", interface, name)

    async def get_all(self, path: str, interface: str) -> Any:
        return await self.call(path, PROPERTIES, "GetAll", "s", interface)

    async def refused(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> tuple[str, str]:
        """The name and message of the error that a call must end in."""
        with pytest.raises(BusError) as caught:
            await self.call(path, interface, member, signature, *body)
        assert "Traceback" not in caught.value.message and ".py" not in caught.value.message
        return caught.value.name.removeprefix(ERROR_PREFIX).removeprefix(DBUS_ERROR), caught.value.message

    async def listen(self) -> None:
        """Keep every signal of cortexd's."""
        await self.bus.subscribe(f"type='signal',sender='{self.destination}'", self.signals.append)

    def told(self, member: str) -> list[cortexd.bus.Signal]:
        """The signals of this name."""
        return [s for s in self.signals if s.member == member]

    def changes(self, path: str) -> list[dict[str, Any]]:
        """What PropertiesChanged told of an object."""
        return [s.body[1] for s in self.told("PropertiesChanged") if s.path == path]


class Daemon:
    """A Manager on FakeSystemd, exported on a bus of the test's own."""

    def __init__(self, house: House, bus: Bus, server: Server, address: str) -> None:
        self.house, self.bus, self.server, self.address = house, bus, server, address


@pytest.fixture
async def daemon(tmp_path: Path, private_bus: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    monkeypatch.setattr(observer, "_SETTLE_SECONDS", 0.01)
    house = House(tmp_path)
    manager = await house.open()
    bus = await Bus.connect(private_bus)
    exported = Server(bus, ROOT_PATH)
    export(bus, exported, manager)
    exported.add(logs.LOG_CONTROL_PATH, logs.LogControl())
    yield Daemon(house, bus, exported, private_bus)
    await exported.close()
    await house.close()
    bus.close()
    await aio_until(lambda: not bus._tasks, "the end of the connection")


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    bus = await Bus.connect(daemon.address)
    yield Client(bus, daemon.bus.unique_name)
    bus.close()
    await aio_until(lambda: not bus._tasks, "the end of the connection")


@pytest.fixture
def house(daemon: Daemon) -> House:
    return daemon.house


# -- The XML and the code


def test_every_interface_has_its_class_and_its_file() -> None:
    files = {p.stem for p in (lab.PROJECT / "dbus").glob("*.xml")}
    assert files == set(CLASSES) == {c.interface.name for c in CLASSES.values()}
    assert interfaces.FOLDER.resolve() == lab.PROJECT / "dbus"


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_is_a_coroutine_with_the_arguments_of_the_xml(name: str) -> None:
    cls, element = CLASSES[name], ET.parse(lab.PROJECT / "dbus" / f"{name}.xml").getroot().find("interface")
    assert element is not None
    for method in element.findall("method"):
        code = getattr(cls, method.get("name", ""))
        assert inspect.iscoroutinefunction(code), method.get("name")
        wanted = [a.get("name") for a in method.findall("arg") if a.get("direction") == "in"]
        assert list(inspect.signature(code).parameters) == ["self", "call", *wanted], method.get("name")
        assert all(a.get("direction") in ("in", "out") and a.get("name") for a in method.findall("arg"))
    for kind in element.findall("property"):
        assert ("write" in kind.get("access", "")) == hasattr(cls, f"set_{kind.get('name')}")
        emits = [a.get("value") for a in kind.findall("annotation")]
        assert emits and emits[0] in ("true", "false", "const"), kind.get("name")


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_that_looks_like_a_member_is_missing_in_the_xml(name: str) -> None:
    cls = CLASSES[name]
    public = {m for m, _ in inspect.getmembers(cls, inspect.isfunction) if not m.startswith("_") and m[0].isupper()}
    assert public == set(cls.interface.methods)


def test_every_signal_is_sent_somewhere() -> None:
    source = Path(objects.__file__).read_text() + Path(server.__file__).read_text()
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    for cls in CLASSES.values():
        assert set(cls.interface.signals) <= texts


def test_every_changing_method_can_grow() -> None:
    """It ends in options; the exceptions are the plain ones for desktop scripts, and what only asks."""
    plain = {"StartModel", "StopModel", "RestartModel", "GetModel", "ListSettings", "ListJobs", "GetUnitFiles"}
    for cls in CLASSES.values():
        for name, method in cls.interface.methods.items():
            assert method.takes.endswith("a{sv}") != (name in plain), name


async def test_every_property_is_there_and_fits_its_type(client: Client, house: House) -> None:
    await house.running()
    job = await client.manager("StartModel", "s", "a")
    for path, name in (
        (ROOT_PATH, MANAGER_INTERFACE), (model_path("a"), MODEL_INTERFACE), (job, JOB_INTERFACE),
        (logs.LOG_CONTROL_PATH, logs.LOG_CONTROL),
    ):  # fmt: skip
        found = await client.get_all(path, name)
        assert set(found) == set(CLASSES[name].interface.properties)
        for one, value in found.items():
            assert await client.get(path, name, one) == value


async def test_what_a_model_says_of_itself(client: Client, house: House) -> None:
    unit = await house.running(port=18011, memory="2G")
    house.systemd.usages[unit] = UnitUsage(memory=5, cpu_nsec=6, tasks=7)
    found = await client.get_all(model_path("a"), MODEL_INTERFACE)
    expected = {
        "Name": "a", "Unit": unit, "Backend": "llamacpp", "State": "ready", "StateReason": "", "Health": "unknown",
        "HealthReason": "", "HealthFailures": 0, "URL": "http://127.0.0.1:18011", "Warnings": [], "Secrets": [],
        "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success",
        "UnitFileState": "disabled", "FragmentPath": str(house.path()), "DropInPaths": [],
        "InvocationID": house.unit().invocation_id, "MainPID": house.unit().main_pid, "NRestarts": 0, "FailedRuns": 0,
        "ControlGroup": f"/fake/{unit}", "StatusText": "", "StateChangeTimestamp": house.unit().state_change,
        "UsualLoadUSec": round(house.manager.view("a").model.usual_load * 1e6),
        "MemoryCurrent": 5, "CPUUsageNSec": 6, "TasksCurrent": 7, "Limits": [],
    }  # fmt: skip
    told = {k: v for k, v in found.items() if k not in ("Settings", "RestartNeeded", "Health")}
    assert told == {k: v for k, v in expected.items() if k != "Health"}
    assert set(found["Settings"]) == set(SETTINGS) and found["Settings"]["memory"] == 2 << 30
    assert found["Settings"]["gpus"] == [] and found["Settings"]["health.enabled"] is True


# -- Introspection


async def test_introspection_is_the_xml(client: Client, house: House) -> None:
    for name in ("a", "a1", "b.c"):
        await house.register(name)
    xml = ET.fromstring(await client.call(ROOT_PATH, "org.freedesktop.DBus.Introspectable", "Introspect"))
    names = [i.get("name") for i in xml.findall("interface")]
    assert names == [MANAGER_INTERFACE, PROPERTIES, "org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer",
                     OBJECT_MANAGER]  # fmt: skip
    file = ET.parse(lab.PROJECT / "dbus" / f"{MANAGER_INTERFACE}.xml").getroot().find("interface")
    shown = xml.find("interface")
    assert file is not None and shown is not None
    assert ET.canonicalize(ET.tostring(shown), strip_text=True) == ET.canonicalize(ET.tostring(file), strip_text=True)
    assert [n.get("name") for n in xml.findall("node")] == ["model"]
    models = ET.fromstring(await client.call(ROOT_PATH + "/model", "org.freedesktop.DBus.Introspectable", "Introspect"))
    assert [n.get("name") for n in models.findall("node")] == ["a", "a1", "b_2ec"]
    assert models.findall("interface") == []
    top = ET.fromstring(await client.call("/", "org.freedesktop.DBus.Introspectable", "Introspect"))
    assert [n.get("name") for n in top.findall("node")] == ["org"]
    assert (await client.refused("/other", "org.freedesktop.DBus.Introspectable", "Introspect"))[0] == "UnknownObject"


async def test_busctl_and_gdbus_read_it(daemon: Daemon, house: House) -> None:
    await house.running()
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": daemon.address}

    async def run(*command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b""), err.decode()
        return out.decode()

    here = ("busctl", f"--address={daemon.address}", "--no-pager")
    name = daemon.bus.unique_name
    text = await run(*here, "introspect", name, model_path("a"), MODEL_INTERFACE)
    rows = {line.split()[0]: line.split() for line in text.splitlines()[1:]}
    assert rows[".State"][1:5] == ["property", "s", '"ready"', "emits-change"]
    assert rows[".Name"][4] == "const" and rows[".MemoryCurrent"][-1] == "-"
    assert rows[".Start"][1:4] == ["method", "a{sv}", "o"]
    assert "/org/cortexlinux/Cortex1/model/a" in await run(*here, "tree", "--list", name)
    listed = await run(*here, "call", name, ROOT_PATH, MANAGER_INTERFACE, "ListModels", "asa{sv}", "0", "0")
    assert listed.startswith("aa{sv} 1 ")
    job = await run(*here, "call", name, ROOT_PATH, MANAGER_INTERFACE, "StopModel", "s", "a")
    assert job.startswith(f'o "{ROOT_PATH}/job/')
    if await asyncio.to_thread(os.path.exists, "/usr/bin/gdbus"):
        shown = await run(
            "gdbus", "introspect", "--address", daemon.address, "--dest", name, "--object-path", ROOT_PATH
        )
        assert "JobRemoved(o job," in shown and f"readonly s Version = '{VERSION}';" in shown


# -- What is refused, and by which name


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "body", "error"),
    [
        ("/nowhere", MANAGER_INTERFACE, "ListJobs", "", (), "UnknownObject"),
        (model_path("b"), MODEL_INTERFACE, "Start", "a{sv}", ({},), "NoSuchModel"),
        (ROOT_PATH + "/job/99", JOB_INTERFACE, "Wait", "a{sv}", ({},), "NoSuchJob"),
        (ROOT_PATH, MODEL_INTERFACE, "Start", "a{sv}", ({},), "UnknownInterface"),
        (model_path("a"), OBJECT_MANAGER, "GetManagedObjects", "", (), "UnknownInterface"),
        (ROOT_PATH, MANAGER_INTERFACE, "Nothing", "", (), "UnknownMethod"),
        (ROOT_PATH, MANAGER_INTERFACE, "properties", "", (), "UnknownMethod"),
        (ROOT_PATH, MANAGER_INTERFACE, "__init__", "", (), "UnknownMethod"),
        (ROOT_PATH, OBJECT_MANAGER, "Nothing", "", (), "UnknownInterface"),
        (ROOT_PATH, PROPERTIES, "Nothing", "", (), "UnknownMethod"),
        (ROOT_PATH, MANAGER_INTERFACE, "StartModel", "", (), "InvalidArgs"),
        (ROOT_PATH, MANAGER_INTERFACE, "StartModel", "u", (1,), "InvalidArgs"),
        (ROOT_PATH, MANAGER_INTERFACE, "StartModel", "ss", ("a", "b"), "InvalidArgs"),
        (ROOT_PATH, PROPERTIES, "Get", "s", ("x",), "InvalidArgs"),
        (ROOT_PATH, PROPERTIES, "Get", "ss", (MANAGER_INTERFACE, "Nothing"), "UnknownProperty"),
        (ROOT_PATH, PROPERTIES, "Get", "ss", ("org.example.No", "Version"), "UnknownInterface"),
        (ROOT_PATH, PROPERTIES, "GetAll", "s", ("org.example.No",), "UnknownInterface"),
        (ROOT_PATH, PROPERTIES, "Set", "ssv", (MANAGER_INTERFACE, "Version", Variant("s", "9")), "PropertyReadOnly"),
        (ROOT_PATH, PROPERTIES, "Set", "ssv", (MANAGER_INTERFACE, "Nothing", Variant("s", "9")), "UnknownProperty"),
        (logs.LOG_CONTROL_PATH, PROPERTIES, "Set", "ssv", (logs.LOG_CONTROL, "LogLevel", Variant("s", "loud")), "InvalidConfig"),
        (logs.LOG_CONTROL_PATH, PROPERTIES, "Set", "ssv", (logs.LOG_CONTROL, "LogLevel", Variant("as", ["x"])), "InvalidConfig"),
        (logs.LOG_CONTROL_PATH, PROPERTIES, "Set", "ssv", (logs.LOG_CONTROL, "LogTarget", Variant("s", "kmsg")), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "StartModel", "s", ("none",), "NoSuchModel"),
        (ROOT_PATH, MANAGER_INTERFACE, "GetModel", "s", ("",), "NoSuchModel"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListModels", "asa{sv}", (["none"], {}), "NoSuchModel"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListModels", "asa{sv}", ([], {"color": Variant("b", True)}), "InvalidArgs"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListModels", "asa{sv}", ([], {"usage": Variant("s", "yes")}), "InvalidArgs"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListEvents", "asa{sv}", ([], {"limit": Variant("u", 0)}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListEvents", "asa{sv}", ([], {"limit": Variant("u", 10001)}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListEvents", "asa{sv}", ([], {"limit": Variant("b", True)}), "InvalidArgs"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListEvents", "asa{sv}", ([], {"kinds": Variant("a(ss)", [("a", "b")])}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListEvents", "asa{sv}", (["x"] * 40_000, {}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "Register", "sa{sv}a{sv}", ("-", {}, {}), "InvalidName"),
        (ROOT_PATH, MANAGER_INTERFACE, "Register", "sa{sv}a{sv}", ("a", {}, {}), "ModelExists"),
        (ROOT_PATH, MANAGER_INTERFACE, "Register", "sa{sv}a{sv}", ("b", {"prot": Variant("s", "1")}, {}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "Register", "sa{sv}a{sv}", ("b", {"port": Variant("as", ["1"])}, {}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "Register", "sa{sv}a{sv}", ("b", {}, {"PATH": Variant("s", "")}), "InvalidArgs"),
        (ROOT_PATH, MANAGER_INTERFACE, "RegisterModels", "a(sa{sv})a{sv}", ([], {}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "RegisterModels", "a(sa{sv})a{sv}", ([("b", {}), ("b", {})], {}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "RegisterModels", "a(sa{sv})a{sv}", ([("a", {})], {}), "ModelExists"),
        (ROOT_PATH, MANAGER_INTERFACE, "ListModels", "asa{sv}", ([], {"properties": Variant("as", ["Nme"])}), "InvalidConfig"),
        (ROOT_PATH, MANAGER_INTERFACE, "Unregister", "sa{sv}", ("a", {"force": Variant("s", "x")}), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "Set", "a{sv}a{sv}", ({}, {}), "InvalidConfig"),
        (model_path("a"), MODEL_INTERFACE, "Kill", "sa{sv}", ("NONE", {}), "InvalidConfig"),
        (model_path("a"), MODEL_INTERFACE, "Kill", "sa{sv}", ("TERM", {}), "Busy"),
        (model_path("a"), MODEL_INTERFACE, "Start", "a{sv}", ({"block": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "Stop", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "Restart", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "Enable", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "Disable", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "ResetFailed", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "CheckHealth", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
        (model_path("a"), MODEL_INTERFACE, "Why", "a{sv}", ({"x": Variant("b", True)},), "InvalidArgs"),
    ],
)  # fmt: skip
async def test_what_is_refused_is_refused_by_name(
    client: Client, house: House, path: str, interface: str, member: str, signature: str, body: Any, error: str
) -> None:
    await house.register()
    events, calls = await house.store.events(EventQuery()), list(house.systemd.calls)
    name, message = await client.refused(path, interface, member, signature, *body)
    assert name == error and message
    assert await house.store.events(EventQuery()) == events and house.systemd.calls == calls


async def test_a_method_that_breaks_tells_nothing_of_itself(
    client: Client, house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(house.manager, "events", broken)
    assert await client.refused(ROOT_PATH, MANAGER_INTERFACE, "ListEvents", "asa{sv}", [], {}) == (
        "Failed", "internal error; the daemon's log has the details"
    )  # fmt: skip
    assert "a secret" in caplog.text and "ListEvents failed" in caplog.text
    assert await client.manager("ListJobs") == []


async def test_an_answer_that_does_not_fit_the_xml_is_an_internal_error(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def wrong(*_: object) -> list[Any]:
        return [["no", "path"]]

    monkeypatch.setattr(ManagerObject, "GetModel", wrong)
    assert (await client.refused(ROOT_PATH, MANAGER_INTERFACE, "GetModel", "s", "a"))[0] == "Failed"
    assert "does not fit its signature" in caplog.text


# -- Models come and go


async def test_register_many(client: Client, house: House) -> None:
    given = {
        "backend": Variant("s", "llamacpp"), "path": Variant("s", str(house.gguf)), "exec": Variant("s", str(house.server)),
        "port": Variant("s", "auto"), "gpus": Variant("s", "none"),
    }  # fmt: skip
    registered = await client.manager("RegisterModels", "a(sa{sv})a{sv}", [("a", given), ("b", given)], {})
    assert [path for path, _ in registered] == [model_path("a"), model_path("b")]
    assert [event.actor for event in await house.events("b")] == [event.actor for event in await house.events("a")]
    shown = await client.manager("ListModels", "asa{sv}", [], {"properties": Variant("as", ["Name", "State"])})
    assert shown == [{"Name": "a", "State": "stopped"}, {"Name": "b", "State": "stopped"}]


async def test_register_and_unregister(client: Client, house: House) -> None:
    await client.listen()
    given = {
        "backend": Variant("s", "llamacpp"), "path": Variant("s", str(house.gguf)), "exec": Variant("s", str(house.server)),
        "port": Variant("u", 18012), "gpus": Variant("as", []), "memory": Variant("t", 2 << 30), "MemoryHigh": Variant("s", "1G"),
    }  # fmt: skip
    options = {"search_path": Variant("s", "/usr/bin")}
    path, warnings = await client.manager("Register", "sa{sv}a{sv}", "a-1.b", given, options)
    assert (path, warnings) == (model_path("a-1.b"), [])
    assert path == "/org/cortexlinux/Cortex1/model/a_2d1_2eb"
    assert await client.manager("GetModel", "s", "a-1.b") == path
    await aio_until(lambda: client.told("InterfacesAdded") and client.changes(ROOT_PATH), "the signals")
    (added,) = client.told("InterfacesAdded")
    assert (added.path, added.body[0], list(added.body[1])) == (ROOT_PATH, path, [MODEL_INTERFACE])
    assert added.body[1][MODEL_INTERFACE] == await client.get_all(path, MODEL_INTERFACE)
    assert client.changes(ROOT_PATH) == [{"ModelCount": 1}]
    managed = await client.call(ROOT_PATH, OBJECT_MANAGER, "GetManagedObjects")
    assert managed == {path: {MODEL_INTERFACE: await client.get_all(path, MODEL_INTERFACE)}}

    job = await client.manager("Unregister", "sa{sv}", "a-1.b", {"force": Variant("b", True)})
    assert await client.job(job, "Wait") == ["done", []]
    await aio_until(lambda: client.told("InterfacesRemoved") and len(client.changes(ROOT_PATH)) == 2, "the signals")
    (removed,) = client.told("InterfacesRemoved")
    assert (removed.path, removed.body) == (ROOT_PATH, [path, [MODEL_INTERFACE]])
    assert await client.call(ROOT_PATH, OBJECT_MANAGER, "GetManagedObjects") == {}
    assert (await client.refused(path, MODEL_INTERFACE, "Start", "a{sv}", {}))[0] == "NoSuchModel"


async def test_a_model_that_is_being_removed_breaks_no_list(
    client: Client, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment is there an object without its model: one such, and the list of all fails."""
    await house.register("a")
    await house.register("b")
    entered, gate = asyncio.Event(), asyncio.Event()

    def held(really: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            if "a" not in house.manager.catalog.models:
                entered.set()
                await gate.wait()
            return await really(*arguments)

        return call

    for owner, name in (
        (house.manager._observer, "removed"),
        (house.systemd, "reload"),
        (house.systemd, "reset_failed"),
    ):
        with monkeypatch.context() as patch:
            entered.clear(), gate.clear()
            patch.setattr(owner, name, held(getattr(owner, name)))
            job = await client.manager("Unregister", "sa{sv}", "a", {})
            await entered.wait()
            assert list(await client.call(ROOT_PATH, OBJECT_MANAGER, "GetManagedObjects")) == [model_path("b")]
            assert [m["Name"] for m in await client.manager("ListModels", "asa{sv}", [], {})] == ["b"]
            gate.set()
            await client.job(job, "Wait")
        await house.register("a")


async def test_every_state_is_told(client: Client, house: House) -> None:
    unit = await house.register(health__interval_seconds=0.2, health__timeout_seconds=0.2, health__max_failures=2)
    house.systemd.behave(unit, start="hang", restart=True)
    path = model_path("a")
    await client.listen()

    async def until(state: State) -> None:
        def told() -> bool:
            states = [c["State"] for c in client.changes(path) if "State" in c]
            return bool(states) and states[-1] == state

        await aio_until(told, f"PropertiesChanged to {state}")

    await client.model("a", "Start", "a{sv}", {})
    await until(State.STARTING)
    house.systemd.finish(unit)
    await until(State.READY)
    await aio_until(lambda: client.changes(path)[-1].get("Health") == "healthy", "the first probe")
    house.prober.outcome, house.prober.reason = Outcome.HTTP_ERROR, "the endpoint answers 503"
    await until(State.DEGRADED)
    last = client.changes(path)[-1]
    assert (last["Health"], last["HealthReason"], last["HealthFailures"]) == ("failing", "the endpoint answers 503", 1)
    await until(State.RESTARTING)
    house.prober.outcome = Outcome.OK
    house.systemd.finish(unit)
    await until(State.READY)
    house.systemd.behave(unit, stop="hang")
    await client.model("a", "Stop", "a{sv}", {})
    await until(State.STOPPING)
    house.systemd.finish(unit)
    await until(State.STOPPED)
    house.systemd.behave(unit, start="failed")
    await client.model("a", "Start", "a{sv}", {})
    await until(State.FAILED)
    await aio_until(lambda: client.changes(path)[-1].get("FailedRuns") == 1, "the failed run to be counted")
    # Only what changed is told, never what is constant or changes all the time; and it adds up.
    kinds = CLASSES[MODEL_INTERFACE].interface.properties
    assert all(kinds[key].emits == "true" for change in client.changes(path) for key in change)
    added: dict[str, Any] = {}
    for change in client.changes(path):
        assert all(added.get(key) != value for key, value in change.items())
        added |= change
    now = await client.get_all(path, MODEL_INTERFACE)
    assert {key: now[key] for key in added} == added
    assert all(s.body[2] == [] for s in client.told("PropertiesChanged"))


async def test_settings_and_warnings_are_told(client: Client, house: House) -> None:
    await house.register("a", port=18013)
    await house.register("b", port=18014)
    await client.listen()
    assert await client.model("b", "Set", "a{sv}a{sv}", {"port": Variant("s", "18013")}, {}) == [
        False, ["port=18013: model a has it, too; only one of them can run at a time"]
    ]  # fmt: skip
    await aio_until(lambda: client.changes(model_path("b")), "b's change")
    assert {"Settings", "URL", "Warnings"} <= set(client.changes(model_path("b"))[-1])
    await aio_until(lambda: client.changes(model_path("a")), "a's change")
    assert list(client.changes(model_path("a"))[-1]) == ["Warnings"]
    await client.job(await client.manager("Unregister", "sa{sv}", "b", {}), "Wait")
    await aio_until(lambda: client.changes(model_path("a"))[-1] == {"Warnings": []}, "a's change back")


async def test_a_list_of_1000_models_is_one_quick_round_trip(client: Client, house: House) -> None:
    await house.register("m")
    model = house.manager.catalog.models["m"]
    for number in range(1000):
        name = f"m{number:03}"
        house.manager.catalog.models[name] = type(model)(name, model.definition)
    began = time.monotonic()
    plain = await client.manager("ListModels", "asa{sv}", [], {})
    quick = time.monotonic() - began
    assert len(plain) == 1001 and "Settings" not in plain[0] and "MemoryCurrent" not in plain[0]
    assert quick < 5, f"{quick:.2f} s, of the 25 s that a caller waits"
    full = {"settings": Variant("b", True), "usage": Variant("b", True), "limits": Variant("b", True)}
    began = time.monotonic()
    whole = await client.manager("ListModels", "asa{sv}", [], full)
    print(f"1000 models: {quick:.2f} s, with everything {time.monotonic() - began:.2f} s ({cortexd.bus.LIBRARY})")
    assert time.monotonic() - began < 10
    assert [m["Name"] for m in whole] == sorted(m["Name"] for m in whole)
    assert set(whole[0]) == set(CLASSES[MODEL_INTERFACE].interface.properties)
    assert [m["Name"] for m in await client.manager("ListModels", "asa{sv}", ["m99?"], {})] == [
        f"m99{n}" for n in range(10)
    ]


# -- Jobs


async def test_wait_early_late_twice_and_again(client: Client, house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    await client.listen()
    path = await client.manager("StartModel", "s", "a")
    early = [asyncio.create_task(client.job(path, "Wait")) for _ in range(3)]
    await asyncio.sleep(0)
    assert await client.manager("ListJobs") == [(path, "a", "start", "running")]
    properties = {"Id": int(path.rsplit("/")[-1]), "Kind": "start", "Model": "a", "State": "running", "Message": ""}
    assert await client.get_all(path, JOB_INTERFACE) == properties
    house.systemd.finish(unit)
    assert await asyncio.gather(*early) == [["done", []]] * 3
    assert await client.job(path, "Wait") == ["done", []]
    assert await client.job(path, "Wait", {"timeout": Variant("t", 0)}) == ["done", []]
    assert await client.get(path, JOB_INTERFACE, "State") == "done" and await client.manager("ListJobs") == []
    await aio_until(lambda: client.told("JobRemoved") and client.changes(path), "the signals")
    assert [s.body for s in client.told("JobNew")] == [[path, "a", "start"]]
    assert [s.body for s in client.told("JobRemoved")] == [[path, "a", "start", "done"]]
    assert client.changes(path) == [{"State": "done"}]
    assert [s.member for s in client.signals if s.member.startswith("Job")] == ["JobNew", "JobRemoved"]
    assert {s.path for s in client.told("JobNew") + client.told("JobRemoved")} == {ROOT_PATH}


async def test_a_wait_with_a_timeout(client: Client, house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    path = await client.manager("StartModel", "s", "a")
    name, message = await client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {"timeout": Variant("t", 50_000)})
    assert (name, message) == (
        "JobTimeout",
        "the start of a goes on after 0.05 s; 'cortexctl status a' shows how far it is",
    )
    assert await client.get(path, JOB_INTERFACE, "State") == "running"
    name, _ = await client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {"timeout": Variant("s", "1")})
    assert name == "InvalidArgs"


async def test_a_job_that_fails(client: Client, house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="failed")
    await client.listen()
    path = await client.model("a", "Start", "a{sv}", {})
    for _ in range(2):
        name, message = await client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {})
        assert (name, message) == ("JobFailed", "the server exited with status 1")
    assert await client.get(path, JOB_INTERFACE, "Message") == message
    await aio_until(lambda: client.told("JobRemoved"), "the signal")
    assert client.told("JobRemoved")[0].body[3] == "failed"


async def test_cancel(client: Client, house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    path = await client.manager("StartModel", "s", "a")
    waiting = asyncio.create_task(client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {}))
    assert await client.job(path, "Cancel") == []
    assert (await waiting)[0] == "JobCanceled"
    await house.until(State.STOPPED)
    assert await client.job(path, "Cancel") == []  # over: nothing to do
    (stop,) = [e for e in await house.events() if e.kind == "stop"]
    assert f"[{os.getpid()}]" in stop.actor

    house.systemd.behave(unit, stop="hang")
    await (await house.start()).wait()
    path = await client.manager("StopModel", "s", "a")
    assert (await client.refused(path, JOB_INTERFACE, "Cancel", "a{sv}", {}))[0] == "Busy"
    await house.until(State.STOPPING)
    house.systemd.finish(unit)


async def test_a_job_is_kept_for_a_while(client: Client, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.KEEP_SECONDS == 60
    monkeypatch.setattr(jobs, "KEEP_SECONDS", 0.2)
    await house.register()
    path = await client.manager("StopModel", "s", "a")
    assert await client.job(path, "Wait") == ["done", []]
    assert await client.job(path, "Wait") == ["done", []]
    number = int(path.rsplit("/")[-1])
    await aio_until(lambda: number not in house.manager.life.jobs._jobs, "the job to be forgotten")
    assert await client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {}) == (
        "NoSuchJob", f"job {number} is unknown, or ended more than 60 s ago"
    )  # fmt: skip
    assert await client.manager("StopModel", "s", "a") != path


async def test_start_and_enable(client: Client, house: House) -> None:
    unit = await house.register()
    house.logind.lingers = False
    path = await client.model("a", "Start", "a{sv}", {"enable": Variant("b", True)})
    result, (warning,) = await client.job(path, "Wait")
    assert result == "done" and "loginctl enable-linger" in warning
    assert house.unit().unit_file_state == "enabled" and ("EnableUnitFiles", unit) in house.systemd.calls


async def test_warnings_of_a_job_reach_who_waits(client: Client, house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="failed")
    path = await client.manager("StopModel", "s", "a")
    assert await client.job(path, "Wait") == ["done", ["it did not end within 20 s and was killed"]]


# -- The rest of the interfaces


async def test_the_audit_log_names_who_asked(client: Client, house: House) -> None:
    await house.register()
    comm = Path("/proc/self/comm").read_text().strip()
    for member, body in (("StartModel", ("a",)), ("StopModel", ("a",)), ("RestartModel", ("a",))):
        await client.job(await client.manager(member, "s", *body), "Wait")
    await client.model("a", "Set", "a{sv}a{sv}", {"RestartSec": Variant("d", 3)}, {})
    await client.model("a", "Enable", "a{sv}", {})
    await client.model("a", "Disable", "a{sv}", {})
    await client.model("a", "Kill", "sa{sv}", "SIGUSR1", {"whom": Variant("s", "main")})
    await client.model("a", "ResetFailed", "a{sv}", {})
    found = await client.manager("ListEvents", "asa{sv}", ["a"], {"limit": Variant("u", 100)})
    asked = [e for e in found if e["Actor"] and e["Kind"] != "registered"]
    assert [e["Kind"] for e in asked] == ["start", "stop", "start", "set", "enable", "disable", "kill", "reset-failed"]
    assert {e["Actor"] for e in asked} == {f"{comm}[{os.getpid()}]"}
    assert set(found[0]) == {"Id", "Time", "Model", "Kind", "Priority", "Message", "Details", "InvocationID", "Actor"}
    kinds = {"kinds": Variant("as", ["set"]), "limit": Variant("u", 5), "since": Variant("t", found[0]["Time"])}
    (event,) = await client.manager("ListEvents", "asa{sv}", [], kinds)
    assert (event["Details"], event["Priority"]) == ('{"RestartSec": "3.0"}', "info")
    assert await client.manager("ListEvents", "asa{sv}", [], {"since": Variant("t", 2**64 - 1)}) == []


async def test_a_caller_whose_name_is_no_text(client: Client, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.register()
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"\xff\xfe\n")
    assert await client.job(await client.manager("StopModel", "s", "a"), "Wait") == ["done", []]
    (stop,) = [e for e in await house.events() if e.kind == "stop"]
    assert stop.actor == f"\ufffd\ufffd[{os.getpid()}]"


async def test_a_caller_that_has_left(daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from cortexd.api.caller import caller_of

    class Gone:
        sender = ":1.999999"

    assert await caller_of(daemon.bus, Gone()) == Caller(":1.999999")  # type: ignore[arg-type]


async def test_a_probe_that_is_asked_for(client: Client, house: House) -> None:
    await house.register(port=18015)
    found = await client.model("a", "CheckHealth", "a{sv}", {})
    assert {k: v for k, v in found.items() if k != "LatencyUSec"} == {
        "Healthy": False, "Outcome": "not-running", "Reason": "it is stopped", "Endpoint": "http://127.0.0.1:18015/health", "Failures": 0,
        "MaxFailures": 3, "FailedRuns": 0, "MaxRestarts": 5, "Next": "nothing: the model is not running", "History": [], "Health": "unknown", "State": "stopped",
        "StateReason": "", "StateChangeTimestamp": 0, "UsualLoadUSec": 0,
    }  # fmt: skip
    await (await house.start()).wait()
    found = await client.model("a", "CheckHealth", "a{sv}", {})
    assert (found["Healthy"], found["Outcome"], found["Reason"]) == (True, "ok", "")
    assert (found["Health"], found["Next"]) == ("healthy", "after 3 failed probes in a row it is restarted")


async def test_why(client: Client, house: House) -> None:
    unit = await house.register()
    found = await client.model("a", "Why", "a{sv}", {})
    assert found == {
        "Cause": "never-started", "Sentence": "it has never been started", "Remedy": "'cortexctl start a' starts it", "Evidence": [],
    }  # fmt: skip
    house.systemd.behave(unit, start="failed")
    path = await client.model("a", "Start", "a{sv}", {})
    await client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {})
    found = await client.model("a", "Why", "a{sv}", {})
    # The journal here is the real one: another test's model of that name may have spoken.
    assert found["Cause"] == "unknown" and found["Sentence"].startswith("the server exited with status 1")
    assert [tuple(row) for row in found["Evidence"]][:2] == [("Result", "exit-code"), ("Exit", "status 1")]


async def test_unit_files(client: Client, house: House) -> None:
    await house.register()
    drop_in = house.scope.unit_folder / "cortex-a.service.d" / "x.conf"
    drop_in.parent.mkdir()
    drop_in.write_bytes(b"[Service]\n# \xff\n")
    await house.systemd.reload()
    found = await client.model("a", "GetUnitFiles")
    assert found == [(str(house.path()), house.path().read_text()), (str(drop_in), "[Service]\n# \ufffd\n")]
    drop_in.unlink()
    assert (await client.model("a", "GetUnitFiles"))[1] == (str(drop_in), "# No such file or directory\n")


async def test_settings_are_listed(client: Client) -> None:
    found = await client.manager("ListSettings")
    assert [row[0] for row in found] == list(SETTINGS)
    rows = {row[0]: row[1:] for row in found}
    assert (
        rows["memory"][1:3] == ("32G", "none")
        and rows["port"][2] == "restart"
        and rows["health.max_failures"][1:3] == ("3", "none")
    )
    assert rows["TasksMax"][1] == "" and all(row[0] and row[3] for row in rows.values())


async def test_backends_are_listed(client: Client, house: House) -> None:
    folder = house.scope.backend_folders[0]
    folder.mkdir(parents=True)
    (folder / "bad.toml").write_text("x")
    found = await client.manager("ListBackends", "a{sv}", {"search_path": Variant("s", str(house.server.parent))})
    keys = {"Name", "Description", "Source", "Executable", "Endpoint", "Quantizations", "Problem"}
    assert all(set(row) == keys for row in found)
    rows = {row["Name"]: row for row in found}
    assert list(rows) == ["vllm", "llamacpp", "ollama", "tgi", "bad", "llamafile", "sglang", "tei", "whisper"]
    assert (rows["llamacpp"]["Executable"], rows["llamacpp"]["Source"]) == (str(house.server), "built-in")
    assert "awq" in rows["sglang"]["Quantizations"] and rows["tei"]["Description"] == "Text Embeddings Inference"
    assert rows["bad"]["Source"] == str(folder / "bad.toml") and "no TOML" in rows["bad"]["Problem"]


async def test_log_level(client: Client) -> None:
    before = logs.LOGGER.level
    try:
        for word in ("debug", "info", "warning", "err", "crit"):
            await client.call(
                logs.LOG_CONTROL_PATH, PROPERTIES, "Set", "ssv", logs.LOG_CONTROL, "LogLevel", Variant("s", word)
            )
            assert await client.get(logs.LOG_CONTROL_PATH, logs.LOG_CONTROL, "LogLevel") == word
    finally:
        logs.LOGGER.setLevel(before)
    await client.call(
        logs.LOG_CONTROL_PATH, PROPERTIES, "Set", "ssv", logs.LOG_CONTROL, "LogTarget", Variant("s", "journal")
    )
    assert await client.get(logs.LOG_CONTROL_PATH, logs.LOG_CONTROL, "SyslogIdentifier") == "cortexd"


async def test_a_blocking_client_of_another_library(daemon: Daemon, house: House) -> None:
    await house.running()

    def talk() -> Any:
        with open_dbus_connection(daemon.address) as connection:
            at = DBusAddress(model_path("a"), daemon.bus.unique_name, PROPERTIES)
            reply = connection.send_and_get_reply(new_method_call(at, "Get", "ss", (MODEL_INTERFACE, "State")))
            return unwrap_msg(reply)

    assert await asyncio.to_thread(talk) == (("s", "ready"),)


# -- Bounds, and the end


async def test_too_many_calls(client: Client, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CALLS", 20)
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    path = await client.manager("StartModel", "s", "a")
    waiting = [asyncio.create_task(client.job(path, "Wait")) for _ in range(20)]
    await aio_until(lambda: len(_tasks(client)) >= 20, "the waiting calls")
    name, message = await client.refused(ROOT_PATH, MANAGER_INTERFACE, "ListJobs")
    assert (name, message) == ("Busy", "20 calls are under way; wait until some are answered")
    house.systemd.finish(unit)
    assert await asyncio.gather(*waiting) == [["done", []]] * 20
    assert await client.manager("ListJobs") == []


def _tasks(client: Client) -> list[Any]:
    return [f for f in client.bus._pending.values() if not f.done()]


async def test_at_the_end_every_caller_gets_an_answer(daemon: Daemon, client: Client, house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    path = await client.manager("StartModel", "s", "a")
    waiting = [asyncio.create_task(client.refused(path, JOB_INTERFACE, "Wait", "a{sv}", {})) for _ in range(10)]
    await client.manager("ListJobs")  # they have arrived
    await daemon.server.close()
    assert {name for name, _ in await asyncio.gather(*waiting)} == {"ShuttingDown"}
    assert (await client.refused(ROOT_PATH, MANAGER_INTERFACE, "ListJobs"))[0] == "ShuttingDown"
    assert house.state() is State.STARTING


async def test_long_input_is_answered_and_harms_nobody(client: Client) -> None:
    """An error that quoted megabytes of control characters, each as \\x01, would cost us the connection."""
    for size, refusal in ((4_000_000, "NoSuchModel"), (30_000_000, "LimitsExceeded")):
        name, message = await client.refused(ROOT_PATH, MANAGER_INTERFACE, "StartModel", "s", "\x01" * size)
        assert name == (refusal if cortexd.bus.LIBRARY == "dbus_next" else "NoSuchModel")
        assert len(message) <= cortexd.bus.MAX_ERROR
    assert await client.manager("ListJobs") == []


async def test_own_transport_does_not_even_read_what_is_too_long(
    client: Client, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Millions of numbers, once as a call that needs no arguments at all, once as a signal for cortexd alone."""
    read: list[str] = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda signature, *more: read.append(signature) or decode(signature, *more))
    numbers = [[0] * (5 << 20 >> 1)]
    call = client.bus.call(daemon.bus.unique_name, ROOT_PATH, server.PEER, "Ping", "an", numbers)
    with pytest.raises(BusError, match="LimitsExceeded: the message is too long"):
        await call
    fields = {
        encoding.PATH: "/",
        encoding.INTERFACE: "a.b",
        encoding.MEMBER: "C",
        encoding.DESTINATION: client.destination,
    }
    content = encoding.encode("an", numbers)
    client.bus.send(encoding.message(encoding.SIGNAL, 0, client.bus.next_serial(), fields, "an", content))
    assert await client.manager("ListJobs") == []
    assert read and "an" not in read


@pytest.mark.parametrize("member", ["ListModels", "GetManagedObjects"])
async def test_own_transport_has_answers_made_as_they_are_sent(
    client: Client, daemon: Daemon, house: House, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """Not all those at once that a client has asked for at once; and who asks for one waits for one of another's."""
    for name in ("a", "b", "c"):
        await house.register(name)
    gate, unsent = asyncio.Event(), []
    monkeypatch.setattr(transport, "MAX_UNSENT", 0)
    monkeypatch.setattr(house.manager.catalog, "look_at_units", gate.wait)
    ours = daemon.bus._transport
    send, lengths = ours.send, []

    def sent(data: bytes) -> None:
        send(data)
        lengths.append(len(data))
        unsent.append(len(ours._out))

    monkeypatch.setattr(ours, "send", sent)
    other = Client(await Bus.connect(daemon.address), client.destination)
    asked = {
        "ListModels": lambda who: who.manager("ListModels", "asa{sv}", [], {}),
        "GetManagedObjects": lambda who: who.call(ROOT_PATH, OBJECT_MANAGER, "GetManagedObjects"),
    }[member]
    many = [asyncio.create_task(asked(client)) for _ in range(100)]
    one = asyncio.create_task(asked(other))
    await aio_until(lambda: len(daemon.server._tasks) == 101 or lengths, "their arrival")
    gate.set()
    await one
    behind = sum(not call.done() for call in many)
    await asyncio.gather(*many)
    other.bus.close()
    assert unsent == lengths and len(lengths) >= 101
    assert behind > 50 or member != "ListModels", f"it had to wait for {100 - behind} answers"
    assert not ours._turns


class Counter(Exported):
    """An object of a test's."""

    interface = interfaces.Interface(
        "org.cortexlinux.Test",
        {"Add": interfaces.Method("i", "i")},
        {"Value": interfaces.Property("i", True, "true"), "Busy": interfaces.Property("b", False, "false")},
        {},
        '<interface name="org.cortexlinux.Test"/>',
    )

    def __init__(self) -> None:
        self.value, self.started, self.gate = 0, 0, asyncio.Event()

    def properties(self) -> dict[str, Any]:
        return {"Value": self.value, "Busy": bool(self.started)}

    async def Add(self, call: Call, number: int) -> list[Any]:
        self.started += 1
        await self.gate.wait()
        self.value += number
        return [self.value]

    def set_Value(self, value: Any) -> None:
        self.value = value


async def test_a_server_of_its_own(daemon: Daemon, client: Client) -> None:
    counter = Counter()
    daemon.server.add("/t", counter)
    await client.listen()
    adding = [asyncio.create_task(client.call("/t", counter.interface.name, "Add", "i", n)) for n in (1, 2, 3)]
    await aio_until(lambda: counter.started == 3, "calls that run at the same time")
    counter.gate.set()
    assert await asyncio.gather(*adding) == [1, 3, 6]
    assert await asyncio.to_thread(_without_interface, daemon) == (7,)
    await client.call("/t", PROPERTIES, "Set", "ssv", counter.interface.name, "Value", Variant("i", 5))
    daemon.server.update("/t")
    daemon.server.update("/nowhere")
    await aio_until(lambda: client.changes("/t"), "the change")
    assert client.changes("/t") == [{"Value": 5}]
    daemon.server.remove("/t")
    daemon.server.remove("/t")
    assert (await client.refused("/t", counter.interface.name, "Add", "i", 1))[0] == "UnknownObject"
    assert client.told("InterfacesRemoved") == []  # it was never managed


def _without_interface(daemon: Daemon) -> Any:
    """The protocol allows it: the object's own interface is meant."""
    with open_dbus_connection(daemon.address) as connection:
        call = new_method_call(DBusAddress("/t", daemon.bus.unique_name), "Add", "i", (1,))
        return unwrap_msg(connection.send_and_get_reply(call))


def test_the_whole_of_it_on_the_other_library() -> None:
    """Which library is used is decided at the import: the rest of this file, in a process of its own. dbus-fast reads and
    writes by itself, and not by our transport."""
    other = "fast" if cortexd.bus.LIBRARY == "dbus_next" else "next"
    if "CORTEX_DBUS" in os.environ or importlib.util.find_spec(f"dbus_{other}") is None:
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not own_transport", __file__]
    done = subprocess.run(
        command, cwd=lab.PROJECT, env={**os.environ, "CORTEX_DBUS": other}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:]
