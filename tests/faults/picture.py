"""What there is of a model: in systemd, in files, in the database and as cortexd shows it, looked at from outside."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import DBusErrorResponse, unwrap_msg

from cortexd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH, unit_name
from cortexd.systemd import wire

VICTIM, BYSTANDER = "victim", "bystander"
UNIT = unit_name(VICTIM)

_LOGIND = ("/org/freedesktop/login1", "org.freedesktop.login1")

CLAIMS = (
    "registered", "unregistered", "set", "enable", "disable", "secret-set", "secret-removed", "reset-failed", "repair",
)  # fmt: skip
"""Events that say that something was done; others say what was asked for, or what happened to a run."""

_KEPT_AT = re.compile(r"(?<=\.damaged-)\w+")
"""When a file was put aside."""

Picture = dict[str, Any]


class View:
    """Of one user's home."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self._home, self._environment = home, environment
        self.bus: DBusConnection = open_dbus_connection(environment["DBUS_SESSION_BUS_ADDRESS"])
        self.system_bus: DBusConnection = open_dbus_connection(environment["DBUS_SYSTEM_BUS_ADDRESS"])
        self._run, self._seen = "", 0

    def close(self) -> None:
        """Leave the buses."""
        self.bus.close()
        self.system_bus.close()

    def ask(self, bus: DBusConnection, message: Any) -> tuple[Any, ...]:
        """Call a method; returns the reply's values."""
        return tuple(unwrap_msg(bus.send_and_get_reply(message, timeout=20)))

    def get(self, bus: DBusConnection, name: str, path: str, interface: str) -> dict[str, Any]:
        """The properties of an object."""
        address = DBusAddress(path, name, wire.PROPERTIES)
        (values,) = self.ask(bus, new_method_call(address, "GetAll", "s", (interface,)))
        return {key: value for key, (_, value) in values.items()}

    def unit(self, name: str) -> dict[str, Any]:
        """What systemd says of a unit."""
        manager = DBusAddress(wire.MANAGER_PATH, wire.DESTINATION, wire.MANAGER)
        (path,) = self.ask(self.bus, new_method_call(manager, "LoadUnit", "s", (name,)))
        found = {}
        for interface in (wire.UNIT, wire.SERVICE):
            found.update(self.get(self.bus, wire.DESTINATION, path, interface))
        return found

    def bystander(self) -> tuple[Any, ...]:
        """Its run."""
        unit = self.unit(unit_name(BYSTANDER))
        return unit["ActiveState"], bytes(unit["InvocationID"]).hex(), unit["MainPID"], unit["UnitFileState"]

    def mark(self) -> None:
        """From here on a run is another one, and an event new."""
        self._run = bytes(self.unit(UNIT)["InvocationID"]).hex()
        with self._database() as database:
            (self._seen,) = database.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()

    def picture(self) -> Picture:
        """All of the model that a use-case may change, and all that one may leave behind."""
        unit = self.unit(UNIT)
        run = bytes(unit["InvocationID"]).hex() if unit["ActiveState"] not in ("inactive", "failed") else ""
        user = DBusAddress(f"{_LOGIND[0]}/user/_{os.getuid()}", _LOGIND[1], wire.PROPERTIES)
        linger = self.ask(self.system_bus, new_method_call(user, "Get", "ss", (f"{_LOGIND[1]}.User", "Linger")))
        return {
            "shown": self._shown(),
            "systemd": {key: unit[key] for key in ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload")},
            "drop-ins": [str(path) for path in unit["DropInPaths"]],
            "run": "another" if run and run != self._run else "same" if run else "none",
            "linger": linger[0][1],
            "files": self._files(),
            **self._rows(),
        }

    def _shown(self) -> dict[str, Any]:
        daemon = self.get(self.bus, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE)["Warnings"]
        told = {"daemon": [_KEPT_AT.sub("", warning) for warning in daemon]}
        manager = DBusAddress(ROOT_PATH, BUS_NAME, MANAGER_INTERFACE)
        body = ([VICTIM], {"settings": ("b", True)})
        with suppress(DBusErrorResponse):
            (found,) = self.ask(self.bus, new_method_call(manager, "ListModels", "asa{sv}", body))
            keys = ("State", "UnitFileState", "Secrets", "RestartNeeded", "Warnings", "Settings")
            shown = {key: found[0][key][1] for key in keys}
            return shown | told
        return told

    def _files(self) -> dict[str, str]:
        while True:
            with suppress(FileNotFoundError):  # deleted while we looked
                return dict(self._walk())

    def _walk(self) -> Iterator[tuple[str, str]]:
        data = self._home / ".cortex"
        runtime = Path(self._environment["XDG_RUNTIME_DIR"]) / "systemd"
        for folder in (
            self._home / ".config" / "systemd" / "user",
            data / "secrets",
            data / "logs",
            runtime / "user.control",
            runtime / "user",
        ):
            for path in sorted(folder.rglob("*")):
                if BYSTANDER in str(path) or not (VICTIM in str(path) or path.name.startswith(".")):
                    continue
                if path.suffix == ".log":  # of runs, each with its time
                    continue
                where = str(path).partition(".kept-")[0]  # and a time
                is_text = path.is_file() and not path.is_symlink() and path.suffix == ".service"
                yield (
                    where + ".kept" * (where != str(path)),
                    hashlib.sha256(path.read_bytes()).hexdigest() if is_text else "",
                )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        path = self._home / ".cortex" / "models.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            yield database

    def _rows(self) -> Picture:
        events = "SELECT kind FROM events WHERE model = ? AND id > ? ORDER BY id"
        with self._database() as database:
            claims = [kind for (kind,) in database.execute(events, (VICTIM, self._seen)) if kind in CLAIMS]
            return {
                "settings": database.execute("SELECT settings FROM models WHERE name = ?", (VICTIM,)).fetchall(),
                "intents": database.execute("SELECT model, kind FROM intents").fetchall(),
                "claims": claims,
            }

    def linger_no_more(self) -> None:
        """Undo what `enable --linger` did."""
        manager = DBusAddress(*_LOGIND, f"{_LOGIND[1]}.Manager")
        self.ask(self.system_bus, new_method_call(manager, "SetUserLinger", "ubb", (os.getuid(), False, False)))
