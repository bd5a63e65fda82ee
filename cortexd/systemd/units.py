"""The units' states, read over the bus and kept true by the manager's signals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Literal

from cortexd.bus import BusError, Signal
from cortexd.errors import UnitFailed
from cortexd.names import UNIT_PATTERN
from cortexd.systemd import wire
from cortexd.systemd.merged import Merged, in_background
from cortexd.systemd.mirror import Mirror
from cortexd.systemd.peer import Peer
from cortexd.systemd.protocol import UnitState

Reading = Literal["load", "if loaded", "files"]
"""Load the unit and read all of it; read all of it if it is loaded; or only what a reload can change."""

# A bus lets a connection wait for so many replies at a time as its max_replies_per_connection says (dbus-daemon(1)): 128 on
# the system's. One reading is some 20 calls.
UNITS_READ_AT_ONCE = 5


class Units:
    """Feeds a Mirror with signals and readings."""

    def __init__(self, peer: Peer, before_load: Callable[[str], None] | None = None) -> None:
        self._peer, self._before_load = peer, before_load
        self.mirror = Mirror()
        self._slots = asyncio.Semaphore(UNITS_READ_AT_ONCE)
        self._reads: Merged[tuple[str, Reading]] = Merged(self._read)
        self._lists: Merged[None] = Merged(self._list)

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

    async def relist(self) -> None:
        """Learn anew which units and files there are."""
        await asyncio.shield(self._lists.request(None))

    async def settle(self, unit: str) -> None:
        """Read a unit if it is still loaded. If not, signals told its end, and loading it would show it without its past."""
        await asyncio.shield(self._reads.request((unit, "if loaded")))

    async def read_all(self, *, trust_signals: bool) -> None:
        """List all units and files and read those units that are loaded; with `trust_signals`, of those at rest only what is never
        signalled: with 1000 models that are enabled, it is the difference between 3 s and 1 s."""
        running = await self._list(None)
        readings: list[tuple[str, Reading]] = [
            (unit, "files" if trust_signals and unit not in running else "if loaded")
            for unit in self.mirror.loaded_units()
        ]
        await asyncio.gather(*(asyncio.shield(self._reads.request(reading)) for reading in readings))

    async def _list(self, _: None) -> set[str]:
        """Returns the units that are not at rest, or not as we knew them."""
        with self.mirror.watch() as watch:
            (units,), (files,) = await asyncio.gather(
                self._peer.ask("list units", "ListUnitsByPatterns", "asas", [], [UNIT_PATTERN]),
                self._peer.ask("list unit files", "ListUnitFilesByPatterns", "asas", [], [UNIT_PATTERN]),
            )
            states = {name: (load, active) for name, _, load, active, *_ in units}
            return self.mirror.listed(states, dict(files), watch)

    async def _read(self, key: tuple[str, Reading]) -> None:
        unit, reading = key
        if reading != "load" and not self.mirror.is_loaded(unit):
            return
        path = wire.unit_path(unit)
        async with self._slots:
            with self.mirror.watch() as watch:
                if reading == "files":
                    fields = await self._get(unit, path, ["fragment_path", "drop_in_paths"])
                    self.mirror.read(unit, {**fields, "need_daemon_reload": False}, watch)
                    return
                if reading == "load":
                    if self._before_load:
                        await asyncio.to_thread(self._before_load, unit)
                    await self._peer.ask(f"load {unit}", "LoadUnit", "s", unit)
                # Pinned, the unit is not unloaded and loaded again between the readings of its properties.
                await self._ask(unit, path, wire.UNIT, "Ref")
                try:
                    watch.told.clear()  # older than what follows
                    fields = await self._get(unit, path, wire.FIELDS.keys() - {"unit_file_state"})
                    fields["unit_file_state"] = await self._file_state(unit, ask=reading == "load")
                    self.mirror.read(unit, fields, watch)
                finally:
                    await self._ask(unit, path, wire.UNIT, "Unref")

    async def _get(self, unit: str, path: str, fields: Iterable[str]) -> dict[str, Any]:
        """Fields of UnitState, asked for in one go (GetAll costs the manager several times as much)."""

        async def get(field: str) -> Any:
            (value,) = await self._ask(unit, path, wire.PROPERTIES, "Get", "ss", *wire.FIELDS[field])
            return wire.field_value(field, value)

        names = list(fields)
        return dict(zip(names, await asyncio.gather(*map(get, names)), strict=True))

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
            in_background(self._reads.request((unit, "if loaded")), f"could not read {unit}")
