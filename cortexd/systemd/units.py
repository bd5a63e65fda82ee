"""The units' states, read over the bus and kept true by the manager's signals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from cortexd.bounded import in_thread
from cortexd.bus import BusError, Signal
from cortexd.errors import CortexError, UnitFailed
from cortexd.names import UNIT_PATTERN
from cortexd.systemd import wire
from cortexd.systemd.merged import Merged, in_background
from cortexd.systemd.mirror import Mirror
from cortexd.systemd.peer import Peer
from cortexd.systemd.protocol import UnitState
from cortexd.systemd.unitfiles import Installs, listed

T = TypeVar("T")

Reading = Literal["load", "all", "unlisted", "rest", "files"]
"""Load the unit and see whether it is as signals said; else, if it is loaded: read all of it, what was not listed of one that is
not at rest, only what signals never tell of a run, or only what a reload can change."""

# A bus lets a connection wait for so many replies at a time as its max_replies_per_connection says (dbus-daemon(1)): 128 on
# the system's. One reading is some 20 calls.
UNITS_READ_AT_ONCE = 5

_FILES_SECONDS = 10.0


class Units:
    """Feeds a Mirror with signals and readings."""

    def __init__(self, peer: Peer, before_load: Callable[[str], None] | None = None) -> None:
        self._peer, self._before_load = peer, before_load
        self.mirror = Mirror()
        self._slots = asyncio.Semaphore(UNITS_READ_AT_ONCE)
        self._reads: Merged[tuple[str, Reading]] = Merged(self._read)
        self._lists: Merged[None] = Merged(self._list)
        self._installs: Installs = {}
        self._folders: Sequence[str] = ()
        """Where the manager looks for unit files: that may change with a reload."""
        self._rows: dict[str, dict[str, Any]] = {}
        """What was listed last of loaded units."""
        self._told: set[str] = set()
        """Units of which signals have told everything since they were known from end to end: all that is ours."""

    async def subscribe(self) -> None:
        """Listen to the signals of units."""
        manager = f"path='{wire.MANAGER_PATH}'"
        await self._peer.subscribe(wire.MANAGER, "UnitNew", manager, self._on_new)
        await self._peer.subscribe(wire.MANAGER, "UnitRemoved", manager, self._on_removed)
        await self._peer.subscribe(wire.MANAGER, "UnitFilesChanged", manager, self._on_files_changed)
        paths = f"path_namespace='{wire.UNIT_PATHS}'"
        await self._peer.subscribe(wire.PROPERTIES, "PropertiesChanged", paths, self._on_properties_changed)

    def close(self) -> None:
        """End all readings."""
        self._reads.cancel()
        self._lists.cancel()

    async def refresh(self, unit: str) -> UnitState:
        """Read a unit, loading it if need be."""
        await asyncio.shield(self._reads.request((unit, "load")))
        return self.mirror.cached(unit)

    async def check_loadable(self, unit: str) -> None:
        """Raise a CortexError where systemd must not be made to read the unit's files; without a name, those of all."""
        if self._before_load:
            await asyncio.to_thread(self._before_load, unit)

    async def drop_ins(self, unit: str) -> tuple[str, ...]:
        """See Systemd. To ask an object there loads the unit."""
        await self.check_loadable(unit)
        found: tuple[str, ...] = await self._get(unit, "drop_in_paths")
        return found

    async def existing(self, units: Collection[str]) -> set[str]:
        """See Systemd."""

        def with_file() -> set[str]:
            return {unit for unit in units if any(os.path.lexists(f"{folder}/{unit}") for folder in self._folders)}

        return await self._at_files(with_file) | {unit for unit in units if self.mirror.is_loaded(unit)}

    async def settle(self, unit: str, *, trust_signals: bool = False) -> None:
        """See to it that a unit is known as its job left it. Where signals can be trusted they have told everything, but what a
        reading is under way for. Else it is read if it is still loaded; if not, signals told its end, and loading it would show
        it without its past."""
        if trust_signals and unit in self._told:
            if last := self._reads.last((unit, "rest")):
                await asyncio.shield(last)
            return
        await asyncio.shield(self._reads.request((unit, "all")))

    async def read_all(self, *, trust_signals: bool) -> None:
        """List all units and files and read those units that are loaded; with `trust_signals`, of those at rest only what is never
        signalled: with 1000 models that are enabled, it is the difference between 3 s and 1 s."""
        if not trust_signals:
            self._told.clear()
        running = await self._list(None)
        loaded = self.mirror.loaded_units()
        self._told.update({*self.mirror.known()}.difference(loaded))
        readings: list[tuple[str, Reading]] = [
            (unit, ("rest" if unit in running else "files") if unit in self._told else self._first(unit))
            for unit in loaded
        ]
        await asyncio.gather(*(asyncio.shield(self._reads.request(reading)) for reading in readings))

    async def _list(self, _: None) -> set[str]:
        """Returns the units that are not at rest, or not as we knew them."""
        with self.mirror.watch() as watch:
            (units,), folders = await asyncio.gather(
                self._peer.ask("list units", "ListUnitsByPatterns", "asas", [], [UNIT_PATTERN]),
                self._unit_path(),
            )
            self._rows = {
                name: {"load_state": load, "active_state": active, "sub_state": sub, "job": job}
                for name, _, load, active, sub, _, _, job, *_ in units
            }
            self._folders = folders
            states = {name: (row["load_state"], row["active_state"]) for name, row in self._rows.items()}
            return self.mirror.listed(states, await self._list_files(folders), watch)

    async def _unit_path(self) -> list[str]:
        """Where the manager looks for unit files."""
        try:
            return [*await self._peer.get(wire.MANAGER_PATH, wire.MANAGER, "UnitPath")]
        except BusError as e:
            raise UnitFailed(f"systemd refused to tell where its unit files are: {e.message}") from e

    async def _list_files(self, folders: Sequence[str]) -> dict[str, str]:
        """The states of unit files, by path."""
        found = await self._at_files(lambda: listed(folders, wire.is_ours, self._installs))
        for path, state in found.items():
            if not state:
                unit = path.rpartition("/")[2]
                try:
                    await self.check_loadable(unit)
                    found[path] = await self._file_state(unit, ask=True)
                except CortexError:
                    found[path] = "bad"  # systemd's word for a file that cannot be read
        return found

    async def _at_files(self, look: Callable[[], T]) -> T:
        """What a look at the folders brings."""
        try:
            return await in_thread(_FILES_SECONDS, look)
        except TimeoutError:
            raise UnitFailed(f"the folders of unit files do not answer within {_FILES_SECONDS:g} s") from None

    def _first(self, unit: str) -> Reading:
        """The first reading of a unit. What is not at rest stays loaded, and need not be pinned."""
        return "all" if self._rows.get(unit, {}).get("active_state") in (None, "inactive", "failed") else "unlisted"

    async def _read(self, key: tuple[str, Reading]) -> None:
        unit, reading = key
        if reading != "load" and not self.mirror.is_loaded(unit):
            return
        async with self._slots:
            if reading == "files":
                with self.mirror.watch() as watch:
                    path, drop_ins = await asyncio.gather(
                        self._get(unit, "fragment_path"), self._get(unit, "drop_in_paths")
                    )
                    fields = {"fragment_path": path, "drop_in_paths": drop_ins, "need_daemon_reload": False}
                    self.mirror.read(unit, fields, watch)
                return
            row = self._rows.get(unit)
            if reading == "unlisted" and row and not self.mirror.is_told(unit):  # else what was listed may be old
                await self._read_unlisted(unit, row)
                return
            if reading == "load":
                await self.check_loadable(unit)
            told = unit in self._told and reading in ("load", "rest")
            with self.mirror.watch() as watch:
                fields = await self._pinned(unit, wire.UNTOLD if told else wire.FIELDS.keys(), load=reading == "load")
                if told and self._is_news(unit, fields):
                    fields = await self._pinned(unit, wire.FIELDS.keys(), load=reading == "load")
                self.mirror.read(unit, fields, watch)
        if wire.is_ours(unit):
            self._told.add(unit)

    def _is_news(self, unit: str, fields: Mapping[str, Any]) -> bool:
        """Whether a unit is not as signals told. One that was unloaded has no run to tell of."""
        known, names = self.mirror.cached(unit), (*wire.STATE, *(wire.RUN if fields["invocation_id"] else ()))
        return any(fields[name] != getattr(known, name) for name in names)

    async def _read_unlisted(self, unit: str, row: Mapping[str, Any]) -> None:
        with self.mirror.watch() as watch:
            names = [name for name in wire.FIELDS if name not in row and name != "unit_file_state"]
            values = await asyncio.gather(*(self._get(unit, name) for name in names))
            fields = dict(zip(names, values, strict=True))
            self.mirror.read(unit, {**row, **fields, "unit_file_state": await self._file_state(unit, ask=False)}, watch)
        self._told.add(unit)

    async def _pinned(self, unit: str, names: Iterable[str], *, load: bool) -> dict[str, Any]:
        """Fields of UnitState, as they were while the unit was not unloaded and loaded again. All is sent at once: each way there and
        back would take the manager a turn of its loop."""
        path, manager = wire.unit_path(unit), wire.MANAGER_PATH
        names = [name for name in names if name != "unit_file_state"]
        _, _, file_state, *values, _ = await asyncio.gather(
            self._ask(unit, manager, wire.MANAGER, "LoadUnit", "s", unit) if load else asyncio.sleep(0),
            self._ask(unit, path, wire.UNIT, "Ref"),
            self._file_state(unit, ask=load and not self.mirror.cached(unit).running),
            *(self._get(unit, name) for name in names),
            self._ask(unit, path, wire.UNIT, "Unref"),
        )
        return {**dict(zip(names, values, strict=True)), "unit_file_state": file_state}

    async def _get(self, unit: str, field: str) -> Any:
        """A field of UnitState (GetAll costs the manager more than twenty of these)."""
        (value,) = await self._ask(unit, wire.unit_path(unit), wire.PROPERTIES, "Get", "ss", *wire.FIELDS[field])
        return wire.field_value(field, value)

    async def _file_state(self, unit: str, *, ask: bool) -> str:
        """As it is on disk; the unit's property of this name is what it was at the last reload.

        To answer, systemd looks at every link beside the unit's: for 1000 units of a start, what was listed has to do.
        """
        listed = self.mirror.file_state(unit)
        if listed is not None and not ask:
            return listed
        try:
            (state,) = await self._peer.call(wire.MANAGER_PATH, wire.MANAGER, "GetUnitFileState", "s", unit)
        except BusError:
            return ""  # there is no file
        return str(state)

    async def _ask(
        self, unit: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> list[Any]:
        try:
            return await self._peer.call(path, interface, member, signature, *body)
        except BusError as e:
            raise UnitFailed(f"systemd refused to tell the state of {unit}: {e.message}") from e

    def _on_new(self, signal: Signal) -> None:
        if wire.is_ours(signal.body[0]):
            self.mirror.loaded(signal.body[0])

    def _on_removed(self, signal: Signal) -> None:
        if wire.is_ours(signal.body[0]):
            self.mirror.unloaded(signal.body[0])

    def _on_files_changed(self, _: Signal) -> None:
        in_background(self._lists.request(None), "could not list the unit files")

    def _on_properties_changed(self, signal: Signal) -> None:
        unit = wire.unit_of_path(signal.path)
        if wire.is_ours(unit) and self.mirror.changed(unit, signal.body[0], signal.body[1]):
            in_background(self._reads.request((unit, "rest")), f"could not read {unit}")
