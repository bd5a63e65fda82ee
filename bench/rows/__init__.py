"""The rows of the table, in the order in which they are measured and shown."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure import Result
from bench.rows import boot, bus, death, events, health, lifecycle, memory, ready, register, status
from bench.world import World

ROWS: dict[str, Callable[[World], Result]] = {
    "status": status.measure,
    "start": lifecycle.measure,
    "ready": ready.measure,
    "register": register.measure,
    "boot": boot.measure,
    "memory": memory.measure,
    "health": health.measure,
    "death": death.measure_death,
    "hang": death.measure_hang,
    "bus": bus.measure,
    "events": events.measure,
}
