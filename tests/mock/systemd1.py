"""A template of python-dbusmock (0.28 and later): org.freedesktop.systemd1 with units read from a folder, and scripted jobs.

What the template that comes with dbusmock lacks is what goes wrong in life: JobRemoved before the reply that names the
job, after it, never, twice, and with every result; jobs that hang; units that are unloaded when they have ended; a manager
that refuses, and one that tells nothing to those who did not subscribe. Loaded by path:

    python3 -m dbusmock --session --template tests/mock/systemd1.py --parameters '{"folder": "/where/unit/files/are"}'

Runs in a process of its own with whatever Python has dbusmock; needs dbus-python alone. Driven through the methods of
SCRIPT_IFACE: Behave, Finish, Crash, Refuse, Keep, Restore.
"""

import json
import time
from pathlib import Path

import dbus.service
from dbusmock import mockobject

import dbus

BUS_NAME = "org.freedesktop.systemd1"
MAIN_OBJ = "/org/freedesktop/systemd1"
MAIN_IFACE = "org.freedesktop.systemd1.Manager"
UNIT_IFACE = "org.freedesktop.systemd1.Unit"
SERVICE_IFACE = "org.freedesktop.systemd1.Service"
SCRIPT_IFACE = "org.cortexlinux.Test.Script"
SYSTEM_BUS = False

# These two sets are sent with PropertiesChanged, always whole (src/core/dbus-unit.c, dbus-service.c); the rest is to be asked for.
SIGNALLED = {
    UNIT_IFACE: (
        "ActiveState",
        "SubState",
        "InvocationID",
        "StateChangeTimestamp",
        "ActiveEnterTimestampMonotonic",
        "ActiveExitTimestampMonotonic",
        "Job",
    ),
    SERVICE_IFACE: (
        "Result",
        "MainPID",
        "NRestarts",
        "ExecMainCode",
        "ExecMainStatus",
        "ExecMainStartTimestamp",
        "StatusText",
    ),
}
START_OF_TIME = 1_700_000_000_000_000


def load(mock, parameters):
    mock.folder = Path(str(parameters["folder"]))
    mock.control = Path(str(parameters["runtime"])) / "systemd" / "user.control"
    mock.numbers = iter(range(1, 1_000_000))
    mock.subscribers = set()
    mock.units = {}
    mock.refusals = {}
    mock.AddProperties(
        MAIN_IFACE, {"Version": "252.39 (mock)", "UnitPath": dbus.Array([str(mock.folder)], signature="s")}
    )


# -- units


class Unit:
    def __init__(self, mock, name):
        label = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in name)
        self.mock = mock
        self.name = name
        self.path = dbus.ObjectPath(f"{MAIN_OBJ}/unit/{label}")
        self.loaded = False
        self.text = ""
        self.behaviour = {}
        self.job = None
        code = "objects['{}'].units['{}'].{}"
        mock.AddObject(
            self.path,
            UNIT_IFACE,
            {
                "Id": name,
                "ActiveState": "inactive",
                "SubState": "dead",
                "InvocationID": dbus.ByteArray(b""),
                "StateChangeTimestamp": dbus.UInt64(0),
                "ActiveEnterTimestampMonotonic": dbus.UInt64(0),
                "ActiveExitTimestampMonotonic": dbus.UInt64(0),
                "Job": dbus.Struct((dbus.UInt32(0), dbus.ObjectPath("/")), signature="uo"),
            },
            [
                ("Ref", "", "", "pass"),
                ("Unref", "", "", "pass"),
                ("Kill", "si", "", code.format(MAIN_OBJ, name, "kill(*args)")),
            ],
        )
        self.object = mockobject.objects[self.path]
        self.object.AddProperties(
            SERVICE_IFACE,
            {
                "Result": "success",
                "MainPID": dbus.UInt32(0),
                "NRestarts": dbus.UInt32(0),
                "Restart": "no",
                "ExecMainCode": dbus.Int32(0),
                "ExecMainStatus": dbus.Int32(0),
                "ExecMainStartTimestamp": dbus.UInt64(0),
                "StatusText": "",
                "ControlGroup": "",
            },
        )
        self.read_file()

    def __getitem__(self, name):
        interface = SERVICE_IFACE if name in self.object.props[SERVICE_IFACE] else UNIT_IFACE
        return self.object.props[interface][name]

    def change(self, **properties):
        if properties.get("ActiveState", self["ActiveState"]) != self["ActiveState"]:
            properties["StateChangeTimestamp"] = dbus.UInt64(START_OF_TIME + next(self.mock.numbers))
            for name, state in ("Enter", properties["ActiveState"]), ("Exit", self["ActiveState"]):
                if state == "active":
                    properties[f"Active{name}TimestampMonotonic"] = dbus.UInt64(time.monotonic_ns() // 1000)
        for name, value in properties.items():
            interface = SERVICE_IFACE if name in self.object.props[SERVICE_IFACE] else UNIT_IFACE
            self.object.props[interface][name] = value
        if self.mock.subscribers:
            for interface in (SERVICE_IFACE, UNIT_IFACE):
                values = {name: self.object.props[interface][name] for name in SIGNALLED[interface]}
                self.object.EmitSignal(
                    "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as", [interface, values, []]
                )

    @property
    def enabled(self):
        return (self.mock.folder / "default.target.wants" / self.name).is_symlink()

    @enabled.setter
    def enabled(self, wanted):
        link = self.mock.folder / "default.target.wants" / self.name
        if wanted and not self.enabled:
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(self.mock.folder / self.name)
        elif not wanted:
            link.unlink(missing_ok=True)

    def read_file(self):
        path = self.mock.folder / self.name
        self.text = text(path)
        self.object.props[UNIT_IFACE].update(
            LoadState="loaded" if "\nExecStart=" in self.text else "bad-setting" if self.text else "not-found",
            FragmentPath=str(path) if self.text else "",
            DropInPaths=self.drop_ins(),
            UnitFileState=self.file_state(),
            NeedDaemonReload=False,
        )
        texts = [self.text, *(text(Path(path)) for path in self.drop_ins())]
        lines = [line for line in "\n".join(texts).splitlines() if line.startswith("Restart=")]
        self.object.props[SERVICE_IFACE]["Restart"] = lines[-1].partition("=")[2] if lines else "no"

    def drop_ins(self):
        found = [path for folder in (self.mock.folder, self.mock.control) for path in folder.glob(f"{self.name}.d/*")]
        return dbus.Array(map(str, sorted(found, key=lambda path: path.name)), signature="s")

    def file_state(self):
        if not self.text:
            return ""
        return "enabled" if self.enabled else "disabled" if "[Install]" in self.text else "static"

    def load(self):
        if not self.loaded:
            self.read_file()
            self.loaded = True
            emit(self.mock, "UnitNew", "so", self.name, self.path)
        elif text(self.mock.folder / self.name) != self.text:
            self.object.props[UNIT_IFACE]["NeedDaemonReload"] = True

    def unload(self):
        """systemd forgets a unit that has ended, unless it failed."""
        if self.loaded and self["ActiveState"] == "inactive" and not self.job:
            self.loaded = False
            emit(self.mock, "UnitRemoved", "so", self.name, self.path)

    def run(self):
        number = next(self.mock.numbers)
        # Told while the unit is still in the state of the run before, as systemd does.
        self.change(
            InvocationID=dbus.ByteArray(number.to_bytes(16, "big")),
            MainPID=dbus.UInt32(1000 + number),
            Result="success",
            ExecMainCode=dbus.Int32(0),
            ExecMainStatus=dbus.Int32(0),
            ExecMainStartTimestamp=dbus.UInt64(START_OF_TIME + number),
        )
        self.change(ActiveState="activating", SubState="start-post", ControlGroup=f"/mock/{self.name}")

    def end(self, failed, code=2, status=15, result="success"):
        state = (
            {"ActiveState": "failed", "SubState": "failed"}
            if failed
            else {"ActiveState": "inactive", "SubState": "dead"}
        )
        died = {"ExecMainCode": dbus.Int32(code), "ExecMainStatus": dbus.Int32(status)} if self["MainPID"] else {}
        self.change(MainPID=dbus.UInt32(0), ControlGroup="", Result=result, **state, **died)

    def crash(self, code, status):
        clean = not self.job and (code, status) in ((1, 0), (2, 15))
        self.end(not clean, code, status, "success" if clean else "exit-code" if code == 1 else "signal")
        if self.job:
            self.job.remove("failed")
        if self.behaviour.get("restart") and not clean:
            self.change(ActiveState="activating", SubState="auto-restart")
        self.unload()

    def kill(self, whom, signal):
        if not self["MainPID"]:
            if whom != "all":
                raise failure("NoSuchProcess", "No matching processes to kill")
        elif signal in (9, 15):
            self.crash(2, signal)

    def kept(self):
        """All that may change, but for files."""
        props = {interface: dict(values) for interface, values in self.object.props.items()}
        return {name: getattr(self, name) for name in ("loaded", "text", "behaviour", "job")}, props

    def restore(self, fields, props):
        self.__dict__.update(fields)
        for interface, values in props.items():
            self.object.props[interface].update(values)


def text(path):
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def unit(mock, name, load=True):
    """The unit, loaded unless asked otherwise."""
    known = mock.units.get(str(name)) or mock.units.setdefault(str(name), Unit(mock, str(name)))
    if load:
        known.load()
    return known


def loaded(mock, name):
    known = mock.units.get(str(name))
    if not known or not known.loaded:
        raise failure("NoSuchUnit", f"Unit {name} not loaded.")
    return known


def failure(name, message):
    name = name if "." in name else f"{BUS_NAME}.{name}"
    return dbus.exceptions.DBusException(message, name=name)


def emit(mock, member, signature, *values):
    if mock.subscribers:
        mock.EmitSignal(MAIN_IFACE, member, signature, values)


def refused(mock, member):
    refusal = mock.refusals.get(member)
    if refusal and refusal[2] > 0:
        refusal[2] -= 1
        raise failure(refusal[0], refusal[1])


# -- jobs


class Job:
    def __init__(self, mock, unit, kind):
        self.mock = mock
        self.unit = unit
        self.kind = kind
        self.id = dbus.UInt32(next(mock.numbers))
        self.path = dbus.ObjectPath(f"{MAIN_OBJ}/job/{self.id}")
        unit.job = self
        unit.change(Job=dbus.Struct((self.id, self.path), signature="uo"))
        emit(mock, "JobNew", "uos", self.id, self.path, unit.name)

    def run(self):
        if self.kind == "stop":
            if self.unit["ActiveState"] not in ("inactive", "failed"):
                self.unit.change(ActiveState="deactivating", SubState="stop-sigterm")
        elif self.kind == "restart" or self.unit["ActiveState"] != "active":
            self.unit.run()

    def finish(self, outcome):
        if self.unit.job is not self:
            return
        if self.kind != "stop":
            if outcome == "done":
                self.unit.change(ActiveState="active", SubState="running")
                self.remove("done")
            else:
                self.unit.crash(1, 1)
            return
        if self.unit["ActiveState"] not in ("inactive", "failed"):
            failed = outcome != "done"
            self.unit.end(failed, 2, 9 if failed else 15, "timeout" if failed else "success")
        self.remove("done")

    def remove(self, result):
        behaviour = self.unit.behaviour
        self.unit.job = None
        for _ in range({"never": 0, "twice": 2}.get(behaviour.get("removed"), 1)):
            emit(self.mock, "JobRemoved", "uoss", self.id, self.path, self.unit.name, behaviour.get("result", result))
        self.unit.change(Job=dbus.Struct((dbus.UInt32(0), dbus.ObjectPath("/")), signature="uo"))
        self.unit.unload()


def queue(mock, kind, name, reply):
    target = unit(mock, name)
    if not target.text and (kind != "stop" or target["ActiveState"] == "inactive"):
        target.unload()
        raise failure("NoSuchUnit", f"Unit {name} not found.")
    if target["LoadState"] != "loaded" and kind != "stop":
        raise failure("BadUnitSetting", f"Unit {name} has a bad unit file setting.")
    if target.job and (target.job.kind == "stop") == (kind == "stop"):
        reply(target.job.path)
        return
    if target.job:
        target.job.remove("canceled")
    job = Job(mock, target, kind)
    outcome = target.behaviour.get("stop" if kind == "stop" else "start", "done")
    if target.behaviour.get("removed") == "before" and outcome != "hang":
        job.run()
        job.finish(outcome)
        reply(job.path)
        return
    reply(job.path)
    job.run()
    if outcome != "hang":
        job.finish(outcome)


ASYNC = ("reply", "error")


@dbus.service.method(MAIN_IFACE, in_signature="ss", out_signature="o", async_callbacks=ASYNC)
def StartUnit(self, name, mode, reply, error):
    refused(self, "StartUnit")
    queue(self, "start", name, reply)


@dbus.service.method(MAIN_IFACE, in_signature="ss", out_signature="o", async_callbacks=ASYNC)
def StopUnit(self, name, mode, reply, error):
    refused(self, "StopUnit")
    queue(self, "stop", name, reply)


@dbus.service.method(MAIN_IFACE, in_signature="ss", out_signature="o", async_callbacks=ASYNC)
def RestartUnit(self, name, mode, reply, error):
    refused(self, "RestartUnit")
    queue(self, "restart", name, reply)


@dbus.service.method(MAIN_IFACE, out_signature="a(usssoo)")
def ListJobs(self):
    jobs = [unit.job for unit in self.units.values() if unit.job]
    return dbus.Array([(j.id, j.unit.name, j.kind, "running", j.path, j.unit.path) for j in jobs], signature="(usssoo)")


# -- the rest of the manager


@dbus.service.method(MAIN_IFACE, sender_keyword="sender")
def Subscribe(self, sender=None):
    if sender in self.subscribers:
        raise failure("AlreadySubscribed", "Client is already subscribed.")
    self.subscribers.add(sender)


@dbus.service.method(MAIN_IFACE, in_signature="s", out_signature="o")
def LoadUnit(self, name):
    refused(self, "LoadUnit")
    return unit(self, name).path


@dbus.service.method(MAIN_IFACE, in_signature="s", out_signature="o")
def GetUnit(self, name):
    return loaded(self, name).path


@dbus.service.method(MAIN_IFACE, in_signature="ay", out_signature="o")
def GetUnitByInvocationID(self, invocation_id):
    wanted = bytes(invocation_id)
    for known in self.units.values():
        if known.loaded and bytes(known["InvocationID"]) == wanted:
            return known.path
    raise failure("NoUnitForInvocationID", f"No unit with the specified invocation ID {wanted.hex()} known.")


@dbus.service.method(MAIN_IFACE, in_signature="asas", out_signature="a(ssssssouso)")
def ListUnitsByPatterns(self, states, patterns):
    for known in self.units.values():
        if known.loaded:
            known.load()  # NeedDaemonReload, which systemd works out whenever it is asked for
    rows = [
        (
            u.name,
            "",
            u["LoadState"],
            u["ActiveState"],
            u["SubState"],
            "",
            u.path,
            dbus.UInt32(0),
            "",
            dbus.ObjectPath("/"),
        )
        for u in self.units.values()
        if u.loaded
    ]
    return dbus.Array(rows, signature="(ssssssouso)")


@dbus.service.method(MAIN_IFACE, in_signature="s", out_signature="s")
def GetUnitFileState(self, name):
    state = unit(self, name, load=False).file_state()
    if not text(self.folder / str(name)):
        raise failure("org.freedesktop.DBus.Error.FileNotFound", "No such file or directory")
    return state


@dbus.service.method(MAIN_IFACE, in_signature="ssi")
def KillUnit(self, name, whom, signal):
    loaded(self, name).kill(whom, signal)


@dbus.service.method(MAIN_IFACE, in_signature="sba(sv)")
def SetUnitProperties(self, name, runtime, properties):
    """Leaves a drop-in for each, as the real one (measured on 252 and 257)."""
    refused(self, "SetUnitProperties")
    known = unit(self, name)
    if not known.text:
        known.unload()
        raise failure("NoSuchUnit", f"Unit {name} not found.")
    folder = self.control / f"{name}.d"
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in properties:
        said = "infinity" if value == 2**64 - 1 else str(int(value))
        if key == "CPUQuotaPerSecUSec":
            key, said = "CPUQuota", f"{int(value) // 10_000}%"
        text = '# This is a drop-in unit file extension, created via "systemctl set-property"\n# or an equivalent operation. Do not edit.'
        (folder / f"50-{key}.conf").write_text(f"{text}\n[Service]\n{key}={said}\n")
    known.object.props[UNIT_IFACE].update(DropInPaths=known.drop_ins(), NeedDaemonReload=True)


@dbus.service.method(MAIN_IFACE, in_signature="s")
def ResetFailedUnit(self, name):
    known = loaded(self, name)
    if known["ActiveState"] == "failed":
        known.change(ActiveState="inactive", SubState="dead", Result="success")
        known.unload()
    known.object.props[SERVICE_IFACE]["NRestarts"] = dbus.UInt32(0)  # which systemd does not signal


@dbus.service.method(MAIN_IFACE, in_signature="asbb", out_signature="ba(sss)")
def EnableUnitFiles(self, files, runtime, force):
    for name in files:
        if not text(self.folder / name):
            raise failure("NoSuchUnit", f"Unit file {name} does not exist.")
        unit(self, name, load=False).enabled = "[Install]" in text(self.folder / name)
    emit(self, "UnitFilesChanged", "")
    return all(unit(self, name, load=False).enabled for name in files), dbus.Array([], signature="(sss)")


@dbus.service.method(MAIN_IFACE, in_signature="asb", out_signature="a(sss)")
def DisableUnitFiles(self, files, runtime):
    there = [unit(self, name, load=False).enabled or text(self.folder / name) for name in files]
    for name in files:
        unit(self, name, load=False).enabled = False
    if not all(there):
        raise failure("NoSuchUnit", f"Unit file {files[0]} does not exist.")
    emit(self, "UnitFilesChanged", "")
    return dbus.Array([], signature="(sss)")


@dbus.service.method(MAIN_IFACE)
def Reload(self):
    refused(self, "Reload")
    emit(self, "Reloading", "b", True)
    for known in self.units.values():
        if known.loaded:
            emit(self, "UnitRemoved", "so", known.name, known.path)
            emit(self, "UnitNew", "so", known.name, known.path)
        known.read_file()
    emit(self, "Reloading", "b", False)


# -- the script


@dbus.service.method(SCRIPT_IFACE, in_signature="ss")
def Behave(self, name, behaviour):
    """JSON: start and stop (done, failed, hang), removed (before, after, never, twice), result (of its jobs), restart."""
    unit(self, name, load=False).behaviour = json.loads(behaviour)


@dbus.service.method(SCRIPT_IFACE, in_signature="ss")
def Finish(self, name, outcome):
    known = unit(self, name, load=False)
    if known.job:
        known.job.finish(outcome)
    else:
        known.change(NRestarts=dbus.UInt32(known["NRestarts"] + 1))  # only now, in the pause it was not
        known.run()
        known.change(ActiveState="active", SubState="running")


@dbus.service.method(SCRIPT_IFACE, in_signature="sii")
def Crash(self, name, code, status):
    unit(self, name, load=False).crash(code, status)


@dbus.service.method(SCRIPT_IFACE, in_signature="sssi")
def Refuse(self, member, error, message, times):
    """Answer the next calls of a method with an error."""
    self.refusals[str(member)] = [str(error), str(message), int(times)]


@dbus.service.method(SCRIPT_IFACE)
def Keep(self):
    """Remember all units and refusals."""
    self.kept = {known: known.kept() for known in self.units.values()}
    self.kept_refusals = {member: list(refusal) for member, refusal in self.refusals.items()}


@dbus.service.method(SCRIPT_IFACE)
def Restore(self):
    """Have them as they were, without a word to anybody."""
    for known, (fields, props) in self.kept.items():
        known.restore(fields, props)
    self.refusals = {member: list(refusal) for member, refusal in self.kept_refusals.items()}
